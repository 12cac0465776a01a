package main

// promised are the goals, in the order of the table.
var promised = []goal{
	{
		part: "chain", what: "one more hop in a chain, each gateway sends on to the next: CPU of its process beside the exit's",
		of: []string{cpu(handed, "middle")}, over: []string{cpu(handed, "exit")}, bound: 1.7, unit: " ×",
	},
	{
		part: "chain", what: "the same, nested: the entry names the whole path",
		of: []string{cpu(threeHops, "middle")}, over: []string{cpu(threeHops, "exit")}, bound: 1.7, unit: " ×",
	},
	{
		part: "chain", what: "all the CPU that the hop adds, in its neighbours too, beside the exit of two hops: sent on",
		of: []string{added(handed)}, over: []string{cpu(twoHops, "exit")}, bound: 1.7, unit: " ×",
	},
	{
		part: "chain", what: "the same, nested",
		of: []string{added(threeHops)}, over: []string{cpu(twoHops, "exit")}, bound: 1.7, unit: " ×",
	},
	{
		part: "chain", what: "throughput of three hops beside two, one and eight streams each way: sent on",
		of: ways(handed), over: ways(twoHops), bound: 0.55, least: true, unit: " ×",
	},
	{
		part: "chain", what: "the same, nested",
		of: ways(threeHops), over: ways(twoHops), bound: 0.55, least: true, unit: " ×",
	},
	{
		part: "ingress", what: "ingress, requests a second over HTTP/1.1 beside a bare httputil.ReverseProxy",
		of: []string{requests(ourIngress, h1)}, over: []string{requests(bareProxy, h1)}, bound: 0.9, least: true, unit: " ×",
	},
	{
		part: "ingress", what: "the same over HTTP/2",
		of: []string{requests(ourIngress, h2)}, over: []string{requests(bareProxy, h2)}, bound: 0.9, least: true, unit: " ×",
	},
	{
		part: "ingress", what: "ingress, p99 over HTTP/1.1 at half of the slower one's peak, beside HAProxy's",
		of: []string{slowest(ourIngress, h1)}, over: []string{slowest(haproxy, h1)}, bound: 2, unit: " ×",
	},
	{
		part: "ingress", what: "the same over HTTP/2",
		of: []string{slowest(ourIngress, h2)}, over: []string{slowest(haproxy, h2)}, bound: 2, unit: " ×",
	},
	{
		part: "xtun", what: "POST with x-tun in TLS and mutual TLS inside, throughput beside CONNECT",
		of: ways(post), over: ways(connect), bound: 0.6, least: true, unit: " ×",
	},
	{
		part: "routes", what: "what a request costs with 10,000 routes beside 10, none of them by regex",
		of: []string{requests(fewRoutes, h1)}, over: []string{requests(manyRoutes, h1)}, bound: 1.2, unit: " ×",
	},
	{
		part: "index", what: "the same, of the route's look-up alone: by host, by path, and of what no route is for",
		of: lookups(10_000), over: lookups(10), bound: 1.2, unit: " ×",
	},
	{part: "agents", what: "memory of the gateway for each of 1,000 agents that are connected", of: []string{agentMemory}, bound: 40, unit: " KB"},
	{
		part: "agents", what: "no answer after the connection of the only agent of a name was closed",
		of: []string{agentGap}, bound: 2, unit: " s",
	},
	{
		part: "agents", what: "the same, where another agent has the name too, which takes the new flows at once",
		of: []string{agentGapTwo}, bound: 0.2, unit: " s",
	},
	{
		part: "half", what: "no answer after the packets of the only agent of a name were dropped",
		of: []string{agentHalf}, bound: 20, unit: " s",
	},
	{
		part: "half", what: "the same, where another agent has the name too",
		of: []string{agentHalfTwo}, bound: 20, unit: " s",
	},
}

// ways are the throughputs of a chain.
func ways(chain string) (names []string) {
	for _, way := range []string{"down_1", "up_1", "down_8", "up_8"} {
		names = append(names, speed(chain, way))
	}
	return names
}

// explanation says how the figures come about.
const explanation = `## How it is measured

All is on this machine: gateways and what they are compared with are processes of their own, with their defaults and
without records of flows; clients and servers are in the measuring process, and h2load, the same for all. Identities are
P-256 certificates made for the run, TLS is 1.3. What is compared takes turns in each round.

- **chains**: an entry with a forwarded port, an exit, and a middle between them on loopback. *Sent on* is a middle that
  takes CONNECT from the entry and asks the exit by CONNECT under its own identity, which opens and seals every byte.
  *Nested* is an entry with ` + "`via: [middle, exit]`" + `: the tunnel to the exit stays closed inside of the one to the
  middle. One and eight streams carry what they can to the target and from it, 1.5 s each after half a second that does not
  count, once 9 MiB of random bytes have come back unchanged; the worst of the four ratios counts.
- **CPU s/GB** is the user and system time of a gateway's process, by /proc/PID/stat, over all four runs, for each 10⁹ bytes
  that have reached their end. *CPU of its process* is the middle's beside the exit's in the same chain. *All that the hop
  adds* is the sum of three processes less the sum of two, beside the exit's of two hops: it has the second seal of a nested
  entry in it.
- **ingress**: h2load (one thread) asks for 1 KiB at ` + "`http://shop.example`" + `, over HTTP/1.1 on 64 connections, over
  HTTP/2 with prior knowledge on 8 connections with 8 requests each, and over TLS with ALPN h2 the same way. It asks through
  an ` + "`ingress`" + ` listener with one route of HTTP, through net/http with an httputil.ReverseProxy, an http.Transport of
  enough idle connections and nothing else, and through HAProxy, each with as many threads as there are processors. The
  backend answers each head over HTTP/1.1 with the same bytes. 2 s after a second that does not count; no request may
  fail. For **p99** h2load asks at half the rate that the slower one of Culvert and HAProxy has just reached, and the times
  of its log count, but for the first tenth.
- **routes**: the same over HTTP/1.1 through a gateway with 10 routes and one with 10,000, half of them for other hosts, half
  for other prefixes of the path; each is asked twice. The look-up alone is BenchmarkRoutes of tunnel, medians of
  five runs.
- **x-tun**: entry and exit as above, with the exit's ` + "`x-tun`" + ` listener in the place of a load balancer: POST over
  HTTP/2 in TLS with a signed token, and mutual TLS from end to end inside, which is all bytes sealed twice. The figures
  without TLS around it are what a balancer that ends TLS leaves to the exit.
- **agents**: a gateway and one other process with 1,000 agents of names of their own. Memory is by how much the gateway's
  resident memory has grown 10 s after the last one connected; then one agent in every hundred must answer.
- **no answer**: a client opens a flow to the agent's name every 20 ms, whether the last one was answered or not, and sends
  a byte there and back. The longest time between two answers counts. Closed: a relay between agent and gateway closes both
  its connections, and can be dialled again at once. Dropped: in a network namespace nft drops all packets of the agent's
  connection, and of no new one.

Agents are measured in the first round only, and so is the look-up.
`
