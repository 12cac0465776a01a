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
)

// outOf are the flags of a gateway on mid that lets flows out to far.
var outOf = []string{"--hbone", ":15008", "--egress", "10.2.0.0/24", "--egress", "fd02::/64"} // immutable

// captured makes hosts with a gateway on mid that flows leave from, and servers on far.
func capturedHosts(t *testing.T) *hosts {
	t.Helper()
	h := newHosts(t)
	h.gatewayOn(t, h.mid, "server", outOf...)
	h.far.whoServer(net.JoinHostPort(farAddr, "7"))
	h.far.whoServer(net.JoinHostPort(farAddr6, "7"))
	h.far.web(net.JoinHostPort(farAddr, "80"))
	h.far.web(net.JoinHostPort(farAddr6, "80"))
	return h
}

// far4 and far6 are whoServers.
var (
	far4 = net.JoinHostPort(farAddr, "7")  // immutable
	far6 = net.JoinHostPort(farAddr6, "7") // immutable
)

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
			h.app.wantFrom(far4, appAddr)
			_, open, err := h.app.from(far4)
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()

			h.app.gateway(append([]string{"capture", "install"}, v.install...)...)
			h.app.wantFrom(far4, appAddr) // no gateway runs, and nobody is cut off

			g := h.gatewayOn(t, h.app, "client", v.run, "--via", net.JoinHostPort(midAddr, "15008"))
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
			h.gatewayOn(t, h.app, "client", "--capture", "--via", net.JoinHostPort(midAddr, "15008"))
			h.app.wantFrom(far4, outAddr)
		})
	}
}

// TestNetnsGatewayLeaves lets new flows pass at once when the gateway ends by itself.
func TestNetnsGatewayLeaves(t *testing.T) {
	h := capturedHosts(t)
	g := h.gatewayOn(t, h.app, "client", "--capture", "--via", net.JoinHostPort(midAddr, "15008"), "--drain", "20s")
	h.app.gateway("capture", "install")
	within(t, "captured", func() error { return h.app.arrives(far4, outAddr) })
	_, open, err := h.app.from(far4)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := g.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	g.says(t, "msg=draining")
	h.app.wantFrom(far4, appAddr)
	echoes(t, open, "captured before") // and is drained
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
