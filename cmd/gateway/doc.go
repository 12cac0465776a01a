// Command gateway is Culvert: streams between workloads, inside mutually authenticated tunnels.
//
// It is the only package that knows which concrete types are joined. The files read in this order:
//
//	main.go     the command tree and the exit codes
//	config.go   one strict YAML file, or flags, made into one Config
//	decode.go   YAML nodes into structs, every fault with its place
//	validate.go what a Config must hold together, every fault with its place
//	build.go    identity → policy → hops → routes → listeners: the parts list
//	run.go      start, wait for signals, drain, end
//	reload.go   build, validate, swap
//	admin.go    /healthz, /readyz, /metrics, /flows, /agents, /debug/pprof
//	metrics.go  the packages' counters, rendered for Prometheus
//
// The other files hold one command each (check, cert, demo, ping, version) or one thing of the
// operating system (listen, memory, notify).
package main
