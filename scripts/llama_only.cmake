# Read by CMake inside llama.cpp's own project (CMAKE_PROJECT_llama.cpp_INCLUDE, see _venv.py): its Python package insists
# on a library for command line tools that it never loads, which takes longer to compile than all the rest.
set(LLAMA_BUILD_COMMON OFF)
