// Command capture measures what capturing costs, on two hosts of network namespaces with a cable between them, and
// writes bench/CAPTURE.md: TPROXY beside a forwarded port, datagrams with batches of system calls and without, and ten
// thousand captured connections at once. It takes root.
//
//	app                                   far
//	client, entry gateway (captures) ─── exit gateway, server
//
// Client, server and both gateways are processes of their own. What is compared takes turns in each round.
package main
