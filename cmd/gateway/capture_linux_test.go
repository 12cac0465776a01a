package main_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// outOf are the flags of a gateway on mid that lets flows out to far.
var outOf = []string{"--hbone", ":15008", "--egress", "10.2.0.0/24", "--egress", "fd02::/64"} // immutable

// capturedHosts makes hosts with a gateway on mid that flows leave from.
func capturedHosts(t *testing.T) *hosts {
	t.Helper()
	h := newHosts(t)
	h.gatewayOn(t, h.mid, "server", outOf...)
	return h
}

// variants are the ways to install rules.
var variants = map[string]struct {
	install []string // flags of install
	run     string   // flag of run
}{ // immutable
	"nft tproxy":        {nil, "--capture"},
	"nft redirect":      {[]string{"--mode", "redirect"}, "--redirect"},
	"iptables tproxy":   {[]string{"--backend", "iptables"}, "--capture"},
	"iptables redirect": {[]string{"--backend", "iptables", "--mode", "redirect"}, "--redirect"},
}

// TestNetnsCaptured carries what unmodified programs of a host do, and gives the host back as it was.
func TestNetnsCaptured(t *testing.T) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := capturedHosts(t)
			before := h.app.rules()
			open := h.app.opens(far4, appAddr)

			h.app.gateway(append([]string{"capture", "install"}, v.install...)...)
			h.app.wantFrom(far4, appAddr) // no gateway runs, and nobody is cut off

			g := h.gatewayOn(t, h.app, "client", v.run, "--via", midHop)
			within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
			h.app.wantFrom(far4, outAddr)
			h.app.wantFrom(far6, outAddr6)
			echoes(t, open, "as before") // it was open before
			for addr, want := range map[string]string{farAddr: outAddr, "[" + farAddr6 + "]": outAddr6} {
				if page := h.app.run("curl", "-sS", "--max-time", "20", "http://"+addr+"/page"); page != want+" asked for "+addr+"/page\n" {
					t.Errorf("curl shows %q, want it to come from %s", page, want)
				}
			}
			if status := h.app.gateway("capture", "status"); !strings.Contains(status, "open: ") {
				t.Errorf("status:\n%s", status)
			}
			g.says(t, "msg=flow", "way="+strings.TrimPrefix(strings.Replace(v.run, "capture", "tproxy", 1), "--"), "dst="+far4, "src="+appAddr)

			h.app.gateway(append([]string{"capture", "install"}, v.install...)...) // again
			within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
			g.kill()
			within(t, "open", func() error { return h.app.arrives(far4, appAddr) })
			h.app.gateway("capture", "remove")
			h.app.gateway("capture", "remove")
			echoes(t, open, "still")
			h.app.wantFrom(far6, appAddr6)
			wantSame(t, h.app.rules(), before)
		})
	}
}

// arrives returns an error if a flow to a whoServer does not come from want there.
func (h *host) arrives(addr, want string) error {
	got, nc, err := h.from(addr)
	if err != nil {
		return err
	}
	_ = nc.Close()
	if got != want {
		return &net.AddrError{Err: "the flow comes from there", Addr: got}
	}
	return nil
}

// TestNetnsClosed is cut off by its own choice while no gateway runs.
func TestNetnsClosed(t *testing.T) {
	for _, backend := range []string{"nft", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := capturedHosts(t)
			h.app.gateway("capture", "install", "--fail", "closed", "--backend", backend)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // with iptables there is no answer
			defer cancel()
			if _, err := h.app.dial(ctx, "tcp", far4); err == nil {
				t.Error("a flow goes its own way, want it to be refused")
			} else if backend == "nft" && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a flow is not refused: %v", err)
			}
			h.gatewayOn(t, h.app, "client", "--capture", "--via", midHop)
			h.app.wantFrom(far4, outAddr)
		})
	}
}

// TestNetnsGatewayLeaves lets new flows pass at once when the gateway ends by itself.
func TestNetnsGatewayLeaves(t *testing.T) {
	h := capturedHosts(t)
	g := h.gatewayOn(t, h.app, "client", "--capture", "--via", midHop, "--drain", "20s")
	h.app.gateway("capture", "install")
	within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
	open := h.app.opens(far4, outAddr)
	if err := g.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	g.says(t, "msg=draining")
	h.app.wantFrom(far4, appAddr)
	echoes(t, open, "captured before") // and is drained
}

// echoUDP is a server on the host that answers each datagram with the address that it comes from, and what it was.
func (h *host) echoUDP(addr string) {
	h.t.Helper()
	var pc net.PacketConn
	var err error
	h.do(func() { pc, err = net.ListenPacket("udp", addr) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { pc.Close() })
	go func() { // ends with pc
		buf := make([]byte, 64<<10)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(from.String())
			_, _ = pc.WriteTo(append([]byte(host+" "), buf[:n]...), from)
		}
	}()
}

// asksUDP sends a datagram and returns the answer. UDP may lose one of them.
func asksUDP(nc net.Conn, text string) (string, error) {
	buf := make([]byte, 64<<10)
	var err error
	for range 10 {
		if _, err = nc.Write([]byte(text)); err != nil {
			continue
		}
		_ = nc.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var n int
		if n, err = nc.Read(buf); err == nil {
			return string(buf[:n]), nil
		}
	}
	return "", err
}

// arrivesUDP returns an error if a datagram to an echoUDP does not come from want there.
func (h *host) arrivesUDP(addr, want string) error {
	nc, err := h.dial(h.t.Context(), "udp", addr)
	if err != nil {
		return err
	}
	defer nc.Close()
	got, err := asksUDP(nc, "hello")
	if err == nil && got != want+" hello" {
		err = &net.AddrError{Err: "the datagram comes as", Addr: got}
	}
	return err
}

// TestNetnsUDP carries datagrams that programs of a host send.
func TestNetnsUDP(t *testing.T) {
	for _, backend := range []string{"nft", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := capturedHosts(t)
			h.far.echoUDP(far4)
			h.far.echoUDP(far6)
			before := h.app.rules()
			h.app.gateway("capture", "install", "--udp-ports", "7", "--backend", backend)
			if err := h.app.arrivesUDP(far4, appAddr); err != nil {
				t.Fatal(err)
			}
			g := h.gatewayOn(t, h.app, "client", "--capture", "--via", midHop)
			within(t, "captured", func() error { return h.app.arrivesUDP(far4, outAddr) })
			within(t, "captured", func() error { return h.app.arrivesUDP(far6, outAddr6) })
			nc, err := h.app.dial(t.Context(), "udp", far4)
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			for _, text := range []string{"", "x", strings.Repeat("a", 1200), strings.Repeat("b", 9000), strings.Repeat("c", 65000)} {
				if got, err := asksUDP(nc, text); err != nil || got != outAddr+" "+text {
					t.Errorf("a datagram of %d bytes comes back with %d, %v", len(text), len(got), err)
				}
			}
			page, err := g.get("/flows")
			if err != nil || !strings.Contains(page, `"network": "udp"`) && !strings.Contains(page, `"network":"udp"`) {
				t.Errorf("/flows: %s, %v", page, err)
			}
			g.kill()
			within(t, "open", func() error { // the same flow finds its own way
				got, err := asksUDP(nc, "again")
				if err == nil && got != appAddr+" again" {
					err = &net.AddrError{Err: "the datagram comes as", Addr: got}
				}
				return err
			})
			h.app.gateway("capture", "remove")
			wantSame(t, h.app.rules(), before)
		})
	}
}

// nameServer is a resolver on the host that knows some names.
func (h *host) nameServer(addr string, names map[string]string) {
	h.t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		text, ok := names[strings.ToLower(q.Question[0].Name)]
		if !ok {
			m.Rcode = dns.RcodeNameError
		}
		for _, one := range strings.Fields(text) {
			kind := "A"
			if strings.Contains(one, ":") {
				kind = "AAAA"
			}
			if rr, err := dns.NewRR(q.Question[0].Name + " 5 IN " + kind + " " + one); err == nil && rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})
	var pc net.PacketConn
	var err error
	h.do(func() { pc, err = net.ListenPacket("udp", addr) })
	if err != nil {
		h.t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: h.listen(addr), Handler: handler}} {
		go func() { _ = srv.ActivateAndServe() }() // ends with Shutdown
		h.t.Cleanup(func() { _ = srv.Shutdown() })
	}
}

// resolvers has programs on the host ask the server at addr.
func (h *host) resolvers(addr string) {
	h.t.Helper()
	dir := "/etc/netns/" + h.name
	if err := os.MkdirAll(dir, 0o755); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.WriteFile(dir+"/resolv.conf", []byte("nameserver "+addr+"\noptions timeout:2\n"), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// TestNetnsNames answers names that only the mesh knows, and leads flows there; other names are the resolver's.
func TestNetnsNames(t *testing.T) {
	for name, v := range variants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t)
			h.far.nameServer(net.JoinHostPort(farAddr, "53"), map[string]string{"web.mesh.": farAddr, "web.example.": farAddr + " " + farAddr6})
			for _, one := range []*host{h.app, h.mid} {
				one.resolvers(farAddr)
			}
			h.gatewayOn(t, h.mid, "server", append(outOf, "--egress", "web.mesh:80")...)
			h.app.gateway(append([]string{"capture", "install"}, v.install...)...)
			g := h.gatewayOn(t, h.app, "client", v.run, "--mesh-names", "*.mesh", "--via", midHop)
			h.app.captured()
			for _, transport := range []string{"+notcp", "+tcp"} {
				if got := h.app.run("dig", transport, "+short", "web.example"); got != farAddr+"\n" {
					t.Errorf("dig %s web.example = %q", transport, got)
				}
				if got := h.app.run("dig", transport, "+short", "web.mesh"); !strings.HasPrefix(got, "24") || strings.Count(got, "\n") != 1 {
					t.Errorf("dig %s web.mesh = %q, want a virtual address", transport, got)
				}
				if got := h.app.run("dig", transport, "+short", "none.example"); got != "" {
					t.Errorf("dig %s none.example = %q", transport, got)
				}
			}
			if got := h.app.run("dig", "+short", "web.mesh", "AAAA"); !strings.HasPrefix(got, "fd63:") {
				t.Errorf("dig web.mesh AAAA = %q", got)
			}
			for _, family := range []string{"-4", "-6"} {
				if page := h.app.run("curl", family, "-sS", "--max-time", "20", "http://web.mesh/page"); page != outAddr+" asked for web.mesh/page\n" {
					t.Errorf("curl %s shows %q", family, page)
				}
			}
			if page := h.app.run("curl", "-4", "-sS", "--max-time", "20", "http://web.example/"); page != outAddr+" asked for web.example/\n" {
				t.Errorf("curl shows %q", page)
			}
			g.says(t, "msg=flow", "host=web.mesh:80")
			if page, err := g.get("/metrics"); err != nil || !strings.Contains(page, "culvert_dns_virtual_total") || strings.Contains(page, "culvert_dns_virtual_total 0") {
				t.Errorf("culvert_dns_virtual_total counts nothing: %v", err)
			}
		})
	}
}

// TestNetnsSniff leads flows by the name in their first bytes, and others by their address.
func TestNetnsSniff(t *testing.T) {
	h := newHosts(t)
	h.far.nameServer(net.JoinHostPort(farAddr, "53"), map[string]string{"shop.example.": farAddr})
	h.mid.resolvers(farAddr)
	h.gatewayOn(t, h.mid, "server", append(outOf, "--egress", "shop.example:80")...)
	h.write(t, "sni.yaml", []byte("rules:\n- {name: secret, action: deny, to: [{ports: ['443']}], when: [{key: connection.sni, values: [secret.example]}]}\n"))
	config := h.write(t, "gw.yaml", []byte(`
identity: {cert: client.pem, key: client.key, roots: root.pem}
policy: {files: [sni.yaml]}
listeners:
- {name: out, kind: tproxy, address: "localhost:15001"}
routes:
- {listeners: [out], hosts: ["shop.example"], via: ["`+midHop+`"]}
- {listeners: [out], destinations: ["10.0.0.0/8"]}
`))
	g := h.gatewayOn(t, h.app, "", "-c", config)
	h.app.gateway("capture", "install", "--no-dns")
	within(t, "captured", func() error {
		err := h.app.arrives(far4, appAddr)
		if err == nil && !strings.Contains(g.out.String(), "dst="+far4) {
			err = errors.New("no record of a flow")
		}
		return err
	})
	h.app.wantFrom(far4, appAddr) // its server speaks first, so that there is nothing to be found
	for host, want := range map[string]string{"shop.example": outAddr, "other.example": appAddr} {
		if page := h.app.run("curl", "-sS", "--max-time", "20", "--resolve", host+":80:"+farAddr, "http://"+host+"/"); page != want+" asked for "+host+"/\n" {
			t.Errorf("curl shows %q, want it from %s", page, want)
		}
	}
	g.says(t, "msg=flow", "host=shop.example:80")
	// A rule about the server name of TLS sees it, also of a flow that goes on by its address.
	if _, _, err := h.app.try("curl", "-sS", "--max-time", "20", "--resolve", "secret.example:443:"+farAddr, "https://secret.example/"); err == nil {
		t.Error("the server name that is denied gets through")
	}
	g.says(t, "msg=flow", "rule=secret", "reason=denied")
}

// TestNetnsInbound takes plain flows of others to a workload.
func TestNetnsInbound(t *testing.T) {
	for _, mode := range []string{"strict", "permissive"} {
		for _, way := range []string{"nft tproxy", "nft redirect", "iptables tproxy"} {
			t.Run(mode+" "+way, func(t *testing.T) {
				t.Parallel()
				h := newHosts(t)
				before := h.app.rules()
				backend, by, _ := strings.Cut(way, " ")
				flags := []string{"--inbound", mode, "--hbone", ":15008", "--allow", "any"}
				if by == "redirect" {
					flags = append(flags, "--redirect", "--egress", "*")
				}
				g := h.gatewayOn(t, h.app, "server", flags...)
				h.app.gateway("capture", "install", "--inbound", "7", "--no-outbound", "--no-dns", "--backend", backend, "--mode", by)
				h.app.captured()
				_, _, err := h.far.from(app4)
				if mode == "strict" {
					if err == nil {
						t.Error("a plain flow gets in")
					}
					g.says(t, "msg=flow", "listener=inbound", "rule=strict", "reason=denied", "src="+farAddr)
				} else {
					h.far.wantFrom(app4, appAddr) // from this host itself, where the gateway is
					h.far.wantFrom(app6, appAddr6)
					g.says(t, "msg=flow", "listener=inbound", "rule=routes", "src="+farAddr)
				}
				// A tunnel gets in.
				h.gatewayOn(t, h.far, "client", "--forward", "127.0.0.1:7777="+app4, "--via", net.JoinHostPort(appAddr, "15008"))
				h.far.wantFrom("127.0.0.1:7777", appAddr)
				h.app.gateway("capture", "remove")
				h.far.wantFrom(app4, farAddr)
				wantSame(t, h.app.rules(), before)
			})
		}
	}
}

// TestNetnsKeepSource lets a workload see who comes, through the gateway that captures and through a tunnel.
func TestNetnsKeepSource(t *testing.T) {
	for _, backend := range []string{"nft", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t)
			config := h.write(t, "gw.yaml", []byte(`
identity: {cert: server.pem, key: server.key, roots: root.pem}
listeners:
- {name: inbound, kind: tproxy, address: "localhost:15006"}
- {name: mesh, kind: hbone, address: ":15008"}
trustHeaders: [any]
routes:
- {listeners: [inbound], destinations: [local], from: any, source: keep}
- {listeners: [mesh], destinations: [local], source: keep}
`))
			h.gatewayOn(t, h.app, "", "-c", config)
			h.app.gateway("capture", "install", "--inbound", "7", "--no-outbound", "--no-dns", "--backend", backend)
			within(t, "captured", func() error { return h.far.arrives(app4, farAddr) })
			h.far.wantFrom(app4, farAddr)
			h.far.wantFrom(app6, farAddr6)
			h.mid.wantFrom(app4, midAddr)
			h.gatewayOn(t, h.far, "client", "--forward", "127.0.0.1:7777="+app4, "--via", net.JoinHostPort(appAddr, "15008"))
			h.far.wantFrom("127.0.0.1:7777", farAddr) // the tunnel's own: what it tells of loopback is of no use here
		})
	}
}

// TestNetnsRouter captures what a host routes for others.
func TestNetnsRouter(t *testing.T) {
	for _, backend := range []string{"nft", "iptables"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t)
			h.far.echoUDP(far4)
			before := h.mid.rules()
			config := h.write(t, "gw.yaml", []byte(`
identity: {cert: server.pem, key: server.key, roots: root.pem}
listeners:
- {name: out, kind: tproxy, address: "localhost:15001"}
routes:
- {listeners: [out], destinations: ["10.2.0.0/24", "fd02::/64"], from: any}
`))
			g := h.gatewayOn(t, h.mid, "", "-c", config)
			h.mid.gateway("capture", "install", "--forward", "eth0", "--no-outbound", "--no-dns", "--udp-ports", "7", "--backend", backend)
			within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
			h.app.wantFrom(far6, outAddr6)
			within(t, "captured", func() error { return h.app.arrivesUDP(far4, outAddr) })
			g.says(t, "msg=flow", "src="+appAddr, "dst="+far4, "rule=routes")
			h.mid.gateway("capture", "remove")
			h.app.wantFrom(far4, appAddr)
			wantSame(t, h.mid.rules(), before)
		})
	}
}

// TestNetnsLoop finds out that a flow is the gateway's own, which rules that are not ours have sent back.
func TestNetnsLoop(t *testing.T) {
	for name, rules := range map[string]string{
		"redirect": `table inet bad {
			chain output { type nat hook output priority -100; tcp dport 7 redirect to :15001; }
		}`,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHosts(t)
			config := h.write(t, "gw.yaml", []byte(`
identity: {cert: client.pem, key: client.key, roots: root.pem}
listeners:
- {name: out, kind: redirect, address: "localhost:15001"}
routes:
- {listeners: [out], destinations: ["10.2.0.0/24"]}
`))
			g := h.gatewayOn(t, h.app, "", "-c", config)
			h.app.run("nft", "-f", h.write(t, "bad.nft", []byte(rules)))
			if got, _, err := h.app.from(far4); err == nil {
				t.Errorf("the flow comes from %s", got)
			}
			g.says(t, "msg=flow", "reason=loop", "captured again")
			if n := strings.Count(g.out.String(), "msg=flow"); n > 4 {
				t.Errorf("it went round %d times", n)
			}
			// Nor does what is made to the listener itself.
			nc, err := h.app.dial(t.Context(), "tcp", "127.0.0.1:15001")
			if err == nil { // else it was reset before
				defer nc.Close()
			}
			g.says(t, "msg=flow", "reason=loop", "this gateway itself listens")
		})
	}
}

// deadline is when a test gives up on a connection.
func deadline() time.Time { return time.Now().Add(patience) }

// wantSame shows the lines in which two texts differ.
func wantSame(t *testing.T, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	lines := func(text string) map[string]int {
		m := make(map[string]int)
		for line := range strings.Lines(text) {
			m[line]++
		}
		return m
	}
	g, w := lines(got), lines(want)
	for line, n := range g {
		if n > w[line] {
			t.Errorf("there is: %s", line)
		}
	}
	for line, n := range w {
		if n > g[line] {
			t.Errorf("there is no more: %s", line)
		}
	}
	if !t.Failed() {
		t.Error("the lines have another order")
	}
}
