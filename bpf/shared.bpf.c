//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps and types that all instrumentors share, for the agent that creates them. */
#include "go.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const struct zs_head *unused_head __attribute__((unused));
const enum zs_counter *unused_counter __attribute__((unused));
const enum zs_flag *unused_flag __attribute__((unused));
const struct go_runtime_layout *unused_runtime __attribute__((unused));
const struct go_map_layout *unused_map __attribute__((unused));
const enum go_map_kind *unused_kind __attribute__((unused));
const struct zs_entry *unused_entry __attribute__((unused));
const struct zs_process *unused_process __attribute__((unused));
const struct zs_cookie_key *unused_cookie_key __attribute__((unused));
const struct zs_key *unused_key __attribute__((unused));
const struct zs_index_key *unused_index_key __attribute__((unused));
const struct go_type *unused_type __attribute__((unused));
const struct go_type_key *unused_type_key __attribute__((unused));
const struct go_sdk *unused_sdk __attribute__((unused));
const enum go_type_flag *unused_type_flag __attribute__((unused));
