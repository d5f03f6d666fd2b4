"""Target languages of a lowered step (C++, CUDA, JavaScript), and how it runs on a CPU."""
