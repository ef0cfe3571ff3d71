"""What exists on a GPU only: a rank's device there, and the imports that leave the CUDA driver alone."""
