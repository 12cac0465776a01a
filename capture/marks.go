package capture

// Marks of packets and sockets (SO_MARK), by which rules of the packet filter know flows. They are bits that others
// leave alone: Kubernetes has 0xc000, Tailscale 0xff0000, Istio 0x539, Cilium 0xf00.
const (
	// MarkCaptured is the bit of packets, and of conntrack's entries, of flows that lead to the gateway.
	MarkCaptured = 0x1000
	// MarkOwn is the bit of all sockets that the gateway connects with: what it sends is not caught again.
	MarkOwn = 0x2000
	// MarkSource are both bits, of sockets with which the gateway connects to a workload in the name of a client's
	// address (IP_TRANSPARENT): what the workload answers is led back to the gateway.
	MarkSource = MarkCaptured | MarkOwn
)
