// Command roles measures what the roles of a gateway cost, each beside what it is to be compared with in the same run:
// one more hop in a chain, requests through an ingress, tunnels through foreign load balancers, many routes, and agents
// that have dialled in. `make roles` runs it and keeps what came out in bench/ROLES.md.
//
// Called as `roles proxy …` it is the bare reverse proxy that the ingress is compared with, in a process of its
// own.
package main
