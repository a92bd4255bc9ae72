// Package bpf is the kernel side that all instrumentors share. The C headers
// in this folder are included by each instrumentor's program; the generated Go
// types are the same structs for those who create the maps and read them.
package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target amd64 -type zs_head -type zs_entry -type zs_owner -type zs_key -type zs_index_key -type zs_process -type zs_cookie_key -type go_type -type go_type_key -type go_type_flag -type go_sdk -type zs_control -type zs_fallback_key -type zs_fallback_value -type zs_counter -type zs_flag -type go_runtime_layout -type go_map_layout -type go_map_kind -cflags "-O2 -g -Wall -Wextra -Werror -Wno-unused-function -mcpu=v3 -I/usr/include/x86_64-linux-gnu" Shared shared.bpf.c
