package example

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -type call -type layout -type result -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-parameter -Wno-unused-function -mcpu=v3 -I../../bpf -I/usr/include/x86_64-linux-gnu" exec probe.bpf.c
