"""In all Python processes of a gateway that has this folder in PYTHONPATH: SIGUSR1 has a rank write to memory that is
not its own, by a kernel, as a broken one would.
"""

import ctypes
import signal
import sys

PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry trespass() {
    .reg .b64 %address;
    .reg .b32 %value;
    mov.u64 %address, 16;
    mov.u32 %value, 1;
    st.global.u32 [%address], %value;
    ret;
}
"""


def trespass(*_: object) -> None:
    """The error that follows is raised where the rank was interrupted, as any other of CUDA's is."""
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    driver.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(PTX))
    driver.cuModuleGetFunction(ctypes.byref(function), module, b"trespass")
    driver.cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    sys.modules["torch"].cuda.synchronize()
    raise RuntimeError("the GPU has let it pass")


signal.signal(signal.SIGUSR1, trespass)
