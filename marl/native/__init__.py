"""Compiled code: the compiler, the libraries it makes, the SIMD vocabulary, and threads that share work."""
