package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"culvert/bench/proc"
)

// tableColumns are the columns of the table, after the pair's name.
var tableColumns = []struct{ head, column string }{
	{"down, 1 stream, MB/s", colDown1},
	{"up, 1 stream, MB/s", colUp1},
	{"down, 8 streams, MB/s", colDown8},
	{"up, 8 streams, MB/s", colUp8},
	{"CPU s/GB", colCPU},
	{"round trip p50, µs", colRTT50},
	{"round trip p99, µs", colRTT99},
	{"p99 beside bulk, ms", colBeside99},
	{"opens/s", colOpens},
	{"CPU per open, µs", colOpenCPU},
	{"KB per idle stream", colIdle},
	{"100 ms away: down, MB/s", colFar},
	{"100 ms away: first byte, ms", colFarFirst},
}

// markdown is RESULTS.md.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Culvert beside others

Made by `+"`make compare`"+` on %s; do not edit. Medians of the rounds, and in parentheses their ratio to the TLS relay.
All rounds are in [results.json](results.json).

`, r.Date)
	if r.Quick {
		b.WriteString("**A quick run: it shows that everything works, and its figures mean nothing.**\n\n")
	}
	if r.Machine.Busy() {
		b.WriteString(proc.BusyWarning)
	}
	r.writeTable(&b)
	if len(r.notes()) > 0 {
		b.WriteString("\n")
	}
	for _, note := range r.notes() {
		fmt.Fprintf(&b, "- %s\n", note)
	}
	b.WriteString("\n![The same as bars](results.svg)\n\n## Goals\n\n| measure | to reach | reached | |\n|---|---|---|---|\n")
	for _, g := range goals {
		has, verdict := g.reached(r)
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", g.what, g.want(), has, verdict)
	}
	b.WriteString("\n")
	r.writeMachine(&b)
	b.WriteString(explanation)
	return b.String()
}

func (r *results) writeTable(b *strings.Builder) {
	b.WriteString("| pair |")
	for _, c := range tableColumns {
		b.WriteString(" " + c.head + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("--:|", len(tableColumns)) + "\n")
	for _, name := range r.pairs() {
		fmt.Fprintf(b, "| %s |", name)
		for _, c := range tableColumns {
			b.WriteString(" " + r.cell(name, c.column) + " |")
		}
		b.WriteString("\n")
	}
}

// cell renders a median with its ratio, or a dash.
func (r *results) cell(pair, column string) string {
	x, ok := r.median(pair, column)
	if !ok || pair == directName && (column == colCPU || column == colOpenCPU) {
		return "–"
	}
	text := figure(x)
	if ratio, ok := r.ratio(pair, tlsRelayName, column); ok && pair != tlsRelayName {
		text += fmt.Sprintf(" (%.2f)", ratio)
	}
	return text
}

// figure writes x with three digits that count.
func figure(x float64) string {
	switch {
	case math.Abs(x) >= 100:
		return fmt.Sprintf("%.0f", x)
	case math.Abs(x) >= 10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

func (r *results) writeMachine(b *strings.Builder) {
	m := r.Machine
	rounds := 0
	for _, one := range r.Rounds {
		rounds = max(rounds, one.Round)
	}
	fmt.Fprintf(b, `## Machine

%s

`, &m)
	for _, pair := range slices.Sorted(maps.Keys(m.Programs)) {
		if m.Programs[pair] != "" {
			fmt.Fprintf(b, "- %s: %s\n", pair, m.Programs[pair])
		}
	}
	fmt.Fprintf(b, "\nRounds: %d. The command:\n\n```sh\n%s\n```\n\n", rounds, r.Command)
}

// explanation says how the figures come about.
const explanation = `## How it is measured

A pair is an entry and an exit, a process each, on loopback with mutual TLS 1.3 (AES-128-GCM, P-256 certificates made for
the run). Clients and the target are in the measuring process, the same for all pairs. One pair runs at a time. Before
anything is measured it must bring back 9 MiB of random bytes unchanged, with the end after a half-close.

| pair | what it is |
|---|---|
| Culvert | ` + "`bin/gateway`" + ` with ` + "`--forward` and `--via`, and with `--hbone`" + `; defaults, but records of flows are off as everywhere |
| TLS relay | a TLS connection for every flow and io.Copy, no multiplexing, no session reuse |
| x/net/http2 | CONNECT streams; receive windows 4 MiB a stream, and 1 GiB (entry) or 16 MiB (exit) a connection; frames up to 1 MiB |
| grpc-go | a bidirectional stream of 32 KiB messages with a codec that does not copy; windows 4 and 16 MiB |
| Envoy | tcp_proxy with tunneling_config into a CONNECT route; a worker for every core, default windows, no access log |
| OpenSSH | ssh -N -L to an sshd of its own, aes128-gcm; SSH, not TLS; its children count |
| direct | clients connect to the target, the bound; it has no proxies whose processor time or memory could be counted |

- **down, up**: what one and eight streams carry from and to the target in 2 s, after half a second that does not count.
- **CPU s/GB**: user and system time of both proxies and their children over all four of these runs.
- **round trip**: 64 bytes there and back on one stream for 2 s. **beside bulk**: the same for 3 s while another stream
  carries as much as it can to the client.
- **opens/s**: 16 workers open a stream, send a byte there and back, and close it, for 3 s.
- **KB per idle stream**: by how much the resident memory of both proxies, freshly started, has grown 10 s after the last
  of 9,000 streams was opened. Memory of the kernel is not in it. Taken in the first two rounds only.
- **100 ms away**: a relay between entry and exit (for direct: before the target) delays by 50 ms each way and carries
  50 MB/s; what one stream carries down in 5 s after 6 s, and how long it takes from the client's connect until its first
  byte is back. A new TCP connection through it costs a round trip, as it would. Taken in the first two rounds only.
`
