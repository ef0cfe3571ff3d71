"""All adaptations to upstream: their purpose, the versions that need them, their files, and how to check the need.

`targets` are the upstream names that an adaptation changes, overrides or calls, with signatures it relies on, in the
syntax of `source`. Names that the code imports need not be listed, since `uses` finds them. Every new adaptation must
be added here.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginepool.engines.sglang.adaptations.probes import Probe, always, lacks, on_gpu, runs, says


@dataclass(frozen=True, slots=True)
class Adaptation:
    name: str
    avoids: str
    """What upstream does without it."""
    where: str
    """File in this engine's folder."""
    seen: str
    """The package and the versions known to need it."""
    probe: Probe
    targets: tuple[str, ...] = ()


_SGLANG = "sglang 0.5.15.post1 to 0.5.17"
_KVCACHED = "kvcached 0.1.6"
_SAVER = "torch_memory_saver 0.0.10"

_SCHEDULER = "sglang.srt.managers.scheduler"
_BATCH = "sglang.srt.managers.schedule_batch"
_READER = "sglang.srt.managers.scheduler_components.batch_result_processor:SchedulerBatchResultProcessor"
_ADDER = "sglang.srt.managers.schedule_policy:PrefillAdder"
_TOKENIZER = "sglang.srt.managers.tokenizer_manager:TokenizerManager"
_GRAMMAR = "sglang.srt.constrained.llguidance_backend:GuidanceGrammar"
_ARGUMENTS = "sglang.srt.server_args"
_LOADER = "sglang.srt.model_loader.loader"
_GROUPS = "sglang.srt.distributed.parallel_state"
_ROTARY = "sglang.srt.layers.rotary_embedding"
_PREFILL_GRAPHS = "sglang.srt.model_executor.runner.prefill_cuda_graph_runner"
_SETUP = "sglang.srt.model_executor.model_runner_components.cuda_graph_setup"
_GRAPHS = "sglang.srt.model_executor.runner.decode_cuda_graph_runner"
_MANAGER = "kvcached.kv_cache_manager:KVCacheManager"
_MEMORY_SAVER = "torch_memory_saver.entrypoint"

_GLOO_THREADS = """
import os, tempfile, torch.distributed as d
with tempfile.TemporaryDirectory() as folder:
    d.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    before = len(os.listdir("/proc/self/task"))
    d.new_group([0])
    print("needed" if len(os.listdir("/proc/self/task")) > before else "not needed")
    d.destroy_process_group()
"""
_GLOO_LISTENS = """
import os, tempfile, torch.distributed as d
with tempfile.TemporaryDirectory() as folder:
    d.init_process_group("gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
    files = [f"/proc/self/fd/{it}" for it in os.listdir("/proc/self/fd")]
    own = {os.readlink(it) for it in files if os.path.islink(it)}
    lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]]
    print("needed" if any(it[3] == "0A" and f"socket:[{it[9]}]" in own for it in lines) else "not needed")
    d.destroy_process_group()
"""
_LATE_ERROR = """
from llguidance import LLMatcher, LLTokenizer
import numpy
tokenizer = LLTokenizer("byte")
matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema('{"$ref": "#"}'), log_level=0)
before = matcher.is_error()
matcher.compute_bitmask()
print("needed" if matcher.is_error() and not before else "not needed")
"""

PROCESS = (
    Adaptation(
        "stub packages on a CPU",
        "imports of packages that only load with a GPU",
        "upstream.py",
        f"{_SGLANG} (sgl_kernel: 0.5.17)",
        says("sglang.srt.utils.common", "\nfrom torchvision.io import"),
        ("sglang.kernels.ops.kvcache.cache_move",),
    ),
    Adaptation(
        "quiet logs",
        "progress bars, and errors for clients that disconnect",
        "upstream.py",
        _SGLANG,
        says("sglang.srt.managers.tokenizer_manager", "but the state was deleted in TokenizerManager"),
        ("sglang.srt.model_loader.weight_utils:tqdm", "sglang.srt.model_loader.weight_utils:DisabledTqdm"),
    ),
    Adaptation(
        "no torch.compile",
        "tracing and compiling again in each process",
        "upstream.py",
        _SGLANG,
        says("sglang.srt.layers.sampler", "@torch.compile("),
        ("torch._dynamo.config:disable",),
    ),
    Adaptation(
        "no watchdog",
        "a thread that references the Scheduler forever",
        "upstream.py",
        _SGLANG,
        says(f"{_SCHEDULER}:Scheduler.init_watch_dog_memory_saver_input_blocker", "= create_scheduler_watchdog("),
        (f"{_SCHEDULER}:create_scheduler_watchdog",),
    ),
    Adaptation(
        "prompt exit",
        "sleeping for a second after being told to stop",
        "upstream.py",
        _SGLANG,
        lacks(f"{_SCHEDULER}:Scheduler.maybe_sleep_on_idle", "gracefully_exit"),
        (f"{_SCHEDULER}:Scheduler.maybe_sleep_on_idle()", f"{_SCHEDULER}:Scheduler.gracefully_exit"),
    ),
    Adaptation(
        "one gloo thread",
        "a thread per process group of several ranks that wakes every 10 ms",
        "groups.py",
        "torch 2.11.0 to 2.13.0",
        runs(_GLOO_THREADS),
        ("torch.distributed.distributed_c10d:ProcessGroupGloo",),
    ),
    Adaptation(
        "no listening in groups of one",
        "a TCP port open to the network, on the address of the host's name",
        "groups.py",
        "torch 2.11.0 to 2.13.0",
        runs(_GLOO_LISTENS),
        (
            "torch.distributed.distributed_c10d:ProcessGroupGloo",
            "torch.distributed.distributed_c10d:ProcessGroup",
            "torch.distributed.distributed_c10d:_new_process_group_helper",
            "sglang.srt.model_executor.model_runner_components.load_model_utils:dist_barrier_after_load",
        ),
    ),
    Adaptation(
        "load snapshots in the socket folder",
        "files left behind in /dev/shm",
        "upstream.py",
        _SGLANG,
        says("sglang.srt.managers.load_snapshot:shm_path_for", "/dev/shm/"),
        ("sglang.srt.managers.load_snapshot:shm_path_for(ipc_name)",),
    ),
    Adaptation(
        "tokenizer cache",
        "reading each tokenizer up to five times per activation",
        "tokenizers.py",
        _SGLANG,
        says("sglang.srt.managers.tp_worker", "self.tokenizer = get_tokenizer("),
        tuple(
            f"sglang.srt.{module}:get_tokenizer"
            for module in (
                "managers.tokenizer_manager",
                "managers.detokenizer_manager",
                "managers.tp_worker",
                "managers.scheduler",
                "utils.hf_transformers_utils",
            )
        ),
    ),
    Adaptation(
        "template detection cache",
        "searching templates and vocabularies at each activation",
        "tokenizers.py",
        _SGLANG,
        lacks("sglang.srt.parser.template_manager:TemplateManager._run_template_detection", "cache"),
        ("sglang.srt.parser.template_manager:TemplateManager._run_template_detection(template, tokenizer)",),
    ),
    Adaptation(
        "lazy grammar tokenizers",
        "half a second at each activation",
        "tokenizers.py",
        f"{_SGLANG} (with eos_token: 0.5.17)",
        says("sglang.srt.constrained.llguidance_backend:GuidanceBackend.__init__", "= from_tokenizer(", "eos_token="),
        (
            "sglang.srt.constrained.llguidance_backend:from_tokenizer",
            "sglang.srt.constrained.llguidance_backend:GuidanceBackend.llguidance_tokenizer",
            "llguidance.hf:from_tokenizer(hf_tokenizer, n_vocab, eos_token, ...)",
        ),
    ),
)
"""Applied in every process: by the template, before it forks."""

REBUILDING = (
    Adaptation(
        "a rank without SGLang's main function",
        "a process per model",
        "rank/main.py",
        f"{_SGLANG} (publishing before: 0.5.17)",
        says(f"{_SCHEDULER}:run_scheduler_process", 'publish(server_args, role="scheduler")', "Scheduler("),
        (
            f"{_SCHEDULER}:Scheduler(server_args, port_args, gpu_id, tp_rank, moe_ep_rank, pp_rank, attn_cp_rank, "
            "moe_dp_rank, dp_rank)",
            f"{_SCHEDULER}:Scheduler.run_event_loop()",
            f"{_ARGUMENTS}:set_global_server_args_for_scheduler(server_args)",
            f"{_ARGUMENTS}:ServerArgs.override(source)",
        ),
    ),
    Adaptation(
        "releasing a Scheduler's resources",
        "relying on the end of SGLang's process",
        "upstream.py: release",
        _SGLANG,
        says(f"{_SCHEDULER}:run_scheduler_process", "_shutdown_fpm()", "release_host_resources()"),
        (
            f"{_SCHEDULER}:Scheduler.release_host_resources()",
            f"{_SCHEDULER}:Scheduler.metrics_reporter",
            f"{_SCHEDULER}:Scheduler.load_snapshot_writer",
        ),
    ),
    Adaptation(
        "dropping SGLang's global state of a model",
        "relying on the end of SGLang's process",
        "upstream.py: forget_model",
        _SGLANG,
        says(f"{_ROTARY}.factory:get_rope", "_ROPE_DICT["),
        (
            f"{_ROTARY}.factory:_ROPE_DICT",
            f"{_GROUPS}:destroy_model_parallel()",
            f"{_GROUPS}:destroy_distributed_environment()",
            "sglang.srt.runtime_context:reset_context()",
        ),
    ),
    Adaptation(
        "process groups rendezvous in a file",
        "a TCP port that another process may take",
        "upstream.py: init_distributed_by",
        _SGLANG,
        always,
        ("sglang.srt.environ:Envs.SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE",),
    ),
    Adaptation(
        "a socket for unused RPCs",
        "ten attempts per second to connect",
        "upstream.py: bind_unused",
        _SGLANG,
        says("sglang.srt.managers.scheduler_components.ipc_channels", "rpc_ipc_name"),
        (f"{_ARGUMENTS}:PortArgs.rpc_ipc_name",),
    ),
    Adaptation(
        "one socket folder per model",
        "ports and files in /tmp",
        "sockets.py",
        _SGLANG,
        always,
        (
            f"{_ARGUMENTS}:PortArgs(tokenizer_ipc_name, scheduler_input_ipc_name, detokenizer_ipc_name, rpc_ipc_name, "
            "metrics_ipc_name, tokenizer_worker_ipc_name, decoupled_spec_ipc_config, nccl_port, instance_id, ...)",
        ),
    ),
    Adaptation(
        "preimport",
        "imports during the first build",
        "rank/preimport.py",
        _SGLANG,
        always,
        ("sglang.srt.arg_groups.arg_utils:resolvable_fields(cls)",),
    ),
)
"""For serving one model after another in one process."""

RANK = (
    Adaptation(
        "KV slots reserved before scheduling",
        "an exception out of the Scheduler's loop when KV memory runs out",
        "rank/kv_reservation.py",
        _SGLANG,
        says("sglang.srt.mem_cache.allocation:alloc_token_slots", "raise RuntimeError("),
        (
            f"{_SCHEDULER}:PrefillAdder",
            f"{_ADDER}.add_one_req(req, has_chunked_req, truncation_align_size)",
            f"{_ADDER}.add_chunked_req(req)",
            f"{_ADDER}.can_run_list",
            f"{_ADDER}.rem_total_tokens",
            f"{_BATCH}:ScheduleBatch.check_decode_mem(selected_indices)",
            f"{_BATCH}:ScheduleBatch.retract_decode(server_args)",
            f"{_BATCH}:ScheduleBatch.new_tokens_required_next_decode(selected_indices)",
            f"{_BATCH}:Req.full_untruncated_fill_ids",
            f"{_BATCH}:Req.set_extend_range(start, end)",
            "sglang.srt.mem_cache.common:evict_from_tree_cache(tree_cache, num_tokens)",
            "sglang.srt.mem_cache.base_prefix_cache:EvictParams(num_tokens, swa_num_tokens, ...)",
            "sglang.srt.mem_cache.base_prefix_cache:DecLockRefParams(swa_uuid_for_lock, ...)",
        ),
    ),
    Adaptation(
        "retrying requests that did not fit",
        "a queue that is never examined again, and a busy loop",
        "rank/stalled_queue.py",
        _SGLANG,
        says(f"{_SCHEDULER}:Scheduler._get_new_batch_prefill_raw", "running_batch.batch_is_full = True"),
        (
            f"{_SCHEDULER}:Scheduler.chunked_req",
            f"{_SCHEDULER}:Scheduler.waiting_queue",
            f"{_SCHEDULER}:Scheduler.running_batch",
            f"{_SCHEDULER}:Scheduler.last_batch",
            f"{_SCHEDULER}:Scheduler.ipc_channels",
            f"{_SCHEDULER}:Scheduler._add_request_to_queue(req, is_retracted)",
            "sglang.srt.managers.scheduler_components.idle_sleeper:IdleSleeper.poller",
            f"{_BATCH}:release_req(req, remaing_req_count, server_args, req_to_token_pool, token_to_kv_pool_allocator, "
            "tree_cache, hisparse_coordinator, ...)",
        ),
    ),
    Adaptation(
        "a late grammar error ends only its own request",
        "an exception out of the Scheduler's loop; from 0.5.17 on, an answer that ends as if it were complete",
        "rank/grammar_errors.py",
        "sglang 0.5.15.post1 to 0.5.17 with llguidance 1.9.1",
        runs(_LATE_ERROR),
        (
            f"{_GRAMMAR}.fill_vocab_mask(vocab_mask, idx)",
            f"{_GRAMMAR}.fill_vocab_mask_batched(entries, vocab_mask)",
            f"{_GRAMMAR}.ll_matcher",
            "sglang.srt.constrained.base_grammar_backend:GrammarRow(grammar, row)",
        ),
    ),
    Adaptation(
        "token_ids_logprob in mixed batches",
        "an exception out of the Scheduler's loop",
        "rank/logprobs.py",
        _SGLANG,
        says(f"{_READER}.move_logprobs_to_cpu", "v.tolist() for v in logits_output.next_token_token_ids_logprobs_val"),
        (
            f"{_READER}.move_logprobs_to_cpu(batch, logits_output)",
            f"{_READER}._normalize_decode_outputs(batch, result, logits_output, next_token_ids)",
            "sglang.srt.layers.logits_processor:LogitsProcessorOutput.next_token_token_ids_logprobs_val",
        ),
    ),
    Adaptation(
        "each token counts once for penalties",
        "tokens that count twice beside a prefill, or no more after a retraction, and answers below their min_tokens",
        "rank/penalties.py",
        _SGLANG,
        lacks(f"{_BATCH}:ScheduleBatch.prepare_for_extend", "cumulate_output_tokens"),
        (
            f"{_BATCH}:ScheduleBatch.prepare_for_extend()",
            f"{_BATCH}:ScheduleBatch.cumulate_penalty_output_tokens()",
            f"{_BATCH}:Req.kv_committed_len",
            "sglang.srt.sampling.penaltylib.frequency_penalty:BatchedFrequencyPenalizer.cumulated_frequency_penalties",
            "sglang.srt.sampling.penaltylib.presence_penalty:BatchedPresencePenalizer.cumulated_presence_penalties",
            "sglang.srt.sampling.penaltylib.repetition_penalty:"
            "BatchedRepetitionPenalizer.cumulated_repetition_penalties",
            "sglang.srt.sampling.penaltylib.min_new_tokens:BatchedMinNewTokensPenalizer.len_output_tokens",
        ),
    ),
    Adaptation(
        "an exception ends the requests that cause it",
        "any exception ending the Scheduler's loop",
        "rank/quarantine.py, rank/rebuild.py",
        _SGLANG,
        lacks(f"{_SCHEDULER}:Scheduler.event_loop_overlap", "except Exception as"),
        (
            f"{_SCHEDULER}:Scheduler.get_next_batch_to_run(running_batch, last_batch)",
            f"{_SCHEDULER}:Scheduler.run_batch(batch, ...)",
            f"{_SCHEDULER}:Scheduler.launch_batch_sample_if_needed(batch_result, cur_batch)",
            f"{_SCHEDULER}:Scheduler.process_batch_result(batch, result)",
            f"{_SCHEDULER}:Scheduler.handle_generate_request(recv_req)",
            f"{_SCHEDULER}:Scheduler.handle_embedding_request(recv_req)",
            f"{_SCHEDULER}:Scheduler.result_queue",
            f"{_SCHEDULER}:Scheduler.batch_record_buf",
            f"{_SCHEDULER}:Scheduler._pending_chunked_abort_req",
            f"{_SCHEDULER}:NextBatchPlan(batch_to_run, running_batch)",
            "sglang.srt.managers.schedule_policy:SchedulePolicy.calc_priority(waiting_queue, running_batch)",
            f"{_BATCH}:Req.reset_for_retract()",
            f"{_BATCH}:Req.surr_offset",
            f"{_BATCH}:Req.send_token_offset",
            "sglang.srt.managers.scheduler_components.output_streamer:SchedulerOutputStreamer.send_to_detokenizer",
            "sglang.srt.constrained.base_grammar_backend:"
            "BaseGrammarBackend.get_cached_or_future_value(key, require_reasoning)",
        ),
    ),
    Adaptation(
        "commands between steps",
        "a Scheduler that accepts requests only",
        "rank/commands.py",
        _SGLANG,
        always,
        (
            f"{_SCHEDULER}:Scheduler.process_input_requests(recv_reqs)",
            f"{_SCHEDULER}:Scheduler._request_dispatcher",
            f"{_SCHEDULER}:Scheduler.is_fully_idle(for_health_check)",
            "sglang.utils:TypeBasedDispatcher.__iadd__(other)",
            "sglang.srt.managers.io_struct:wrap_as_pickle",
        ),
    ),
    Adaptation(
        "weights from the weight store",
        "reading a checkpoint at each start",
        "rank/stored.py",
        _SGLANG,
        always,
        (
            f"{_LOADER}:BaseModelLoader.load_model(model_config, device_config)",
            f"{_LOADER}:BaseModelLoader.download_model(model_config)",
        ),
    ),
    Adaptation(
        "building a model without a loader",
        "reading a checkpoint at each start",
        "building.py",
        _SGLANG,
        always,
        (
            f"{_LOADER}:_get_quantization_config(model_config, load_config, ...)",
            f"{_LOADER}:_initialize_model(model_config, load_config, quant_config, ...)",
            f"{_SCHEDULER}:Scheduler.init_moe_gemm_config()",
            f"{_GROUPS}:init_distributed_environment(world_size, rank, distributed_init_method, local_rank, "
            "backend, ...)",
            f"{_GROUPS}:initialize_model_parallel(...)",
            "sglang.srt.layers.dp_attention:initialize_dp_attention(server_args, model_config)",
        ),
    ),
    Adaptation(
        "the first load, step by step",
        "loading onto the GPU, where the model cannot be kept",
        "loading/weights.py",
        _SGLANG,
        always,
        (
            f"{_LOADER}:DefaultModelLoader._get_all_weights(model_config, model)",
            f"{_LOADER}:device_loading_context(module, target_device)",
            f"{_LOADER}:get_model_loader(load_config, model_config)",
            "sglang.srt.configs.model_config:ModelConfig.from_server_args(server_args, ...)",
            "sglang.srt.utils.common:reserve_rope_cache_for_long_sequences(model, server_args, model_config, ...)",
        ),
    ),
    Adaptation(
        "rotary tables computed by the GPU",
        "the CPU's rounding in tables of a first load",
        "loading/rotary.py",
        _SGLANG,
        on_gpu,
        (
            f"{_ROTARY}.base:RotaryEmbedding._compute_cos_sin_cache()",
            f"{_ROTARY}.base:RotaryEmbedding._ensure_cos_sin_cache_length(needed_max_pos)",
        ),
    ),
)
"""Around SGLang's Scheduler and models."""

FRONT = (
    Adaptation(
        "the gateway's control over each request",
        "clients choosing ids and addresses, and SGLang's signal handlers",
        "front/tokenizer.py",
        f"{_SGLANG} (lifecycle_id: 0.5.17)",
        says(f"{_TOKENIZER}.auto_create_handle_loop", "add_signal_handler("),
        (
            f"{_TOKENIZER}.auto_create_handle_loop()",
            f"{_TOKENIZER}.create_abort_task(obj)",
            f"{_TOKENIZER}.abort_request(rid, abort_all)",
            f"{_TOKENIZER}.generate_request(obj, request)",
            f"{_TOKENIZER}._init_req_state(obj, request, lifecycle_id)",
            f"{_TOKENIZER}._validate_one_request(obj, input_ids)",
            f"{_TOKENIZER}._create_tokenized_object(obj, input_text, input_ids, ...)",
            f"{_TOKENIZER}._handle_batch_output(recv_obj)",
            f"{_TOKENIZER}.max_req_input_len",
            f"{_TOKENIZER}.asyncio_tasks",
            f"{_TOKENIZER}.event_loop",
        ),
    ),
    Adaptation(
        "validation of requests that would crash a rank",
        "unchecked types and ranges",
        "front/validation.py",
        _SGLANG,
        lacks("sglang.srt.sampling.sampling_params:SamplingParams.verify", "stop_token_ids"),
        (
            "sglang.srt.sampling.sampling_params:SamplingParams.logit_bias",
            "sglang.srt.sampling.sampling_params:SamplingParams.stop_token_ids",
            "sglang.srt.managers.io_struct:GenerateReqInput.top_logprobs_num",
        ),
    ),
    Adaptation(
        "allow-list of fields",
        "every field of SGLang's requests being open to clients",
        "front/field_check.py, front/fields.py",
        _SGLANG,
        always,
        (
            "sglang.srt.entrypoints.openai.serving_base:OpenAIServingBase.handle_request(request, raw_request)",
            "sglang.srt.entrypoints.openai.serving_base:"
            "OpenAIServingBase._convert_to_internal_request(request, raw_request)",
            "sglang.srt.entrypoints.openai.serving_base:OpenAIServingBase.create_error_response(message, param, ...)",
        ),
    ),
    Adaptation(
        "stateless responses",
        "keeping all responses forever",
        "front/responses.py",
        _SGLANG,
        says("sglang.srt.entrypoints.openai.serving_responses:OpenAIServingResponses.__init__", "self.response_store"),
        (
            "sglang.srt.entrypoints.openai.serving_responses:OpenAIServingResponses.create_responses(request, "
            "raw_request)",
        ),
    ),
    Adaptation(
        "SGLang's routes without its server",
        "a server with its own port and lifecycle",
        "front/layer.py",
        _SGLANG,
        always,
        (
            "sglang.srt.entrypoints.http_server:set_global_state(global_state)",
            "sglang.srt.entrypoints.http_server:_GlobalState(tokenizer_manager, template_manager, scheduler_info)",
            "sglang.srt.entrypoints.engine:init_tokenizer_manager(server_args, port_args, TokenizerManagerClass)",
            f"{_TOKENIZER}._dispatch_to_scheduler(obj)",
            f"{_TOKENIZER}.load_snapshot_reader",
            f"{_TOKENIZER}.serving_chat_class",
        ),
    ),
    Adaptation(
        "a detokenizer that can be stopped",
        "a separate process with an endless loop",
        "front/detokenizer.py",
        _SGLANG,
        says("sglang.srt.managers.detokenizer_manager:DetokenizerManager.event_loop", "while True"),
        (
            "sglang.srt.managers.detokenizer_manager:DetokenizerManager(server_args, port_args)",
            "sglang.srt.managers.detokenizer_manager:DetokenizerManager._request_dispatcher",
            "sglang.srt.managers.io_struct:sock_recv",
            "sglang.srt.managers.io_struct:sock_send",
        ),
    ),
)
"""Around SGLang's OpenAI layer."""

GPU = (
    Adaptation(
        "imports answered by NVML",
        "imports that initialise CUDA, after which the process cannot be forked",
        "gpu/imports.py",
        _SGLANG,
        says("sglang.srt.platforms", "torch.cuda.is_available()"),
        (f"{_GROUPS}:GraphCaptureContext",),
    ),
    Adaptation(
        "silent captures without garbage collection",
        "progress bars, and two collections of all objects of the template",
        "gpu/upstream.py: adapt",
        _SGLANG,
        says(f"{_GRAPHS}:DecodeCudaGraphRunner.capture", "with freeze_gc("),
        (f"{_GRAPHS}:tqdm", f"{_GRAPHS}:freeze_gc(enable_cudagraph_gc)"),
    ),
    Adaptation(
        "expert sums by a kernel",
        "a sum written for torch.compile",
        "gpu/upstream.py: adapt",
        _SGLANG,
        says("sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe", "_use_moe_sum_reduce_torch_compile("),
        ("sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe:_use_moe_sum_reduce_torch_compile",),
    ),
    Adaptation(
        "lazy decode graphs",
        "seconds of captures before a model serves",
        "gpu/lazy_decode_graphs.py",
        f"{_SGLANG} (by itself points a capture at padding: 0.5.17)",
        says(f"{_GRAPHS}:DecodeCudaGraphRunner.__init__", "self.capture()"),
        (
            f"{_GRAPHS}:DecodeCudaGraphRunner.capture()",
            f"{_GRAPHS}:DecodeCudaGraphRunner.can_run_graph(forward_batch)",
            f"{_GRAPHS}:DecodeCudaGraphRunner._pad_to_bucket",
            f"{_GRAPHS}:DecodeCudaGraphRunner.max_bs",
            f"{_GRAPHS}:DecodeCudaGraphRunner.capture_bs",
            f"{_SCHEDULER}:Scheduler.is_disable_overlap_for_batch(batch, last_batch)",
            f"{_SCHEDULER}:Scheduler.result_queue",
            "sglang.srt.model_executor.model_runner:ModelRunner.decode_cuda_graph_runner",
            "sglang.srt.model_executor.input_buffers:ForwardInputBuffers.reset_index_buffers()",
        ),
    ),
    Adaptation(
        "prefill graphs captured while the rank is idle",
        "captures for 58 lengths before a model serves, or none with less than 4 GiB free",
        "gpu/lazy_prefill_graphs.py",
        "sglang 0.5.17",
        says(f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner.__init__", "self.capture()"),
        (
            f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner.capture()",
            f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner._capture_one_stream()",
            f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner.can_run_graph(forward_batch)",
            f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner.capture_num_tokens",
            f"{_PREFILL_GRAPHS}:PrefillCudaGraphRunner.max_num_tokens",
            f"{_PREFILL_GRAPHS}:graph_capture",
            f"{_PREFILL_GRAPHS}:freeze_gc(enable_cudagraph_gc)",
            f"{_PREFILL_GRAPHS}:tqdm",
            f"{_SETUP}:PrefillCudaGraphRunner",
            f"{_SETUP}:should_skip_auto_prefill_cuda_graph_for_memory",
            "sglang.srt.model_executor.runner_backend.breakable_cuda_graph_backend"
            ":BreakableCudaGraphBackend._shared_output_buffer",
            "sglang.srt.model_executor.model_runner:ModelRunner.prefill_cuda_graph_runner",
        ),
    ),
    Adaptation(
        "all captures on one stream",
        "a cuBLAS workspace per capture",
        "gpu/lazy_decode_graphs.py",
        _SGLANG,
        says(f"{_GROUPS}:GroupCoordinator.graph_capture", "self.device_module.Stream()"),
        (f"{_GRAPHS}:graph_capture", f"{_GROUPS}:graph_capture(stream)"),
    ),
    Adaptation(
        "releasing cached GPU memory",
        "relying on the end of SGLang's process",
        "gpu/upstream.py: forget_gpu_memory",
        _SGLANG,
        on_gpu,
        (
            "sglang.srt.model_executor.input_buffers:_forward_input_buffer_pool",
            "sglang.srt.model_executor.graph_shared_output:GraphSharedOutput._process_shared",
            "sglang.srt.distributed.device_communicators.pynccl_allocator:set_graph_pool_id(graph_pool_id)",
            "kvcached.integration.sglang.interfaces:shutdown_kvcached()",
        ),
    ),
    Adaptation(
        "pausing weights by their tag",
        "SGLang having no notion of parking",
        "gpu/upstream.py",
        _SAVER,
        on_gpu,
        (
            f"{_MEMORY_SAVER}:TorchMemorySaver.region(tag, ...)",
            f"{_MEMORY_SAVER}:TorchMemorySaver.pause(tag)",
            f"{_MEMORY_SAVER}:TorchMemorySaver.resume(tag)",
            f"{_MEMORY_SAVER}:TorchMemorySaver._impl",
            f"{_MEMORY_SAVER}:_TorchMemorySaverImpl._mem_pools",
        ),
    ),
    Adaptation(
        "one file name per rank",
        "all forks of the template sharing one name",
        "gpu/upstream.py: name_this_rank",
        _KVCACHED,
        says("kvcached.utils", "\nDEFAULT_IPC_NAME ="),
        ("kvcached.utils:DEFAULT_IPC_NAME",),
    ),
    Adaptation(
        "clearing and releasing the padding slot's page",
        "NaN garbage that kernels multiply by zero, and a page kept by a parked model",
        "gpu/elastic_kv.py",
        _KVCACHED,
        on_gpu,
        (
            f"{_MANAGER}.null_block",
            f"{_MANAGER}.group_id",
            f"{_MANAGER}.block_mem_size",
            f"{_MANAGER}.num_layers",
            f"{_MANAGER}.num_kv_buffers",
            f"{_MANAGER}.trim()",
            f"{_MANAGER}.get_mapped_memory_size(unit)",
            f"{_MANAGER}._get_num_alloced_blocks()",
            f"{_MANAGER}._wait_post_init()",
            "kvcached.control:set_instance_memory_limit(limit_bytes, revision, ...)",
            "kvcached.vmm_ops:map_to_kv_tensors",
            "kvcached.vmm_ops:unmap_from_kv_tensors",
        ),
    ),
)
"""On GPUs only."""

ADAPTATIONS = (*PROCESS, *REBUILDING, *RANK, *FRONT, *GPU)
