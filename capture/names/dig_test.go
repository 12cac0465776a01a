package names

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
)

// serveLoopback answers on a port of UDP and TCP until the test ends, and returns it.
func serveLoopback(t *testing.T, s *Server) (port string) {
	t.Helper()
	pc, ln := samePort(t)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() { // ends with ln; the cleanup waits for it
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			group.Go(func() { // ends with the app, or ctx
				defer nc.Close()
				s.ServeStream(ctx, nc, nobody)
			})
		}
	})
	group.Go(func() { // ends with pc; the cleanup waits for it
		buf := make([]byte, maxQuestion)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			if b := s.answer(ctx, buf[:n], nobody, plainSize); b != nil {
				if _, err := pc.WriteTo(b, from); err != nil {
					t.Errorf("WriteTo = %v, want nil", err)
				}
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		pc.Close()
		ln.Close()
		group.Wait()
	})
	_, port, err := net.SplitHostPort(pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// TestForeignDig asks with dig, over UDP and TCP, for a name of the mesh and for one that a resolver knows.
func TestForeignDig(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Fatal("there is no dig; run make setup")
	}
	many := long(200)
	r := newResolver(t, func(network string, q *dns.Msg) []*dns.Msg {
		if q.Question[0].Name == "many.example." {
			m := many(network, q)
			if network == "udp" {
				m[0].Truncated, m[0].Answer = true, nil
			}
			return m
		}
		return zoneOf(soa, "www.example. 60 IN A 192.0.2.1", "alias.example. 60 IN CNAME www.example.")(network, q)
	})
	s := newServer(t, &Config{Upstream: []string{r.addr}, Virtual: []string{"*.mesh"}}, dialLoopback)
	port := serveLoopback(t, s)
	four, _ := s.four.of("orders.mesh.")
	six, _ := s.six.of("orders.mesh.")
	for _, c := range []struct {
		args string
		want []string // lines with it, without a comment
	}{
		{"Orders.mesh A", []string{"status: NOERROR", "Orders.mesh. 60 IN A " + four.String()}},
		{"orders.mesh AAAA", []string{"status: NOERROR", "orders.mesh. 60 IN AAAA " + six.String()}},
		{"orders.mesh MX", []string{"status: NOERROR", "ANSWER: 0"}},
		{"alias.example A", []string{"status: NOERROR", "alias.example. 60 IN CNAME www.example.", "www.example. 60 IN A 192.0.2.1"}},
		{"none.example A", []string{"status: NXDOMAIN", "example. 300 IN SOA ns.example."}},
		{"many.example A", []string{"status: NOERROR", "ANSWER: 200"}},
		{"-q www.example -t A +noedns", []string{"status: NOERROR", "ADDITIONAL: 0"}},
		{"www.example A +dnssec", []string{"status: NOERROR", "flags: do; udp: 1232"}},
		{"www.example A +edns=1 +noednsnegotiation", []string{"status: BADVERS"}},
		{"www.example ANY", []string{"status: REFUSED"}},
	} {
		for _, network := range []string{"+notcp", "+tcp"} {
			t.Run(c.args+" "+network, func(t *testing.T) {
				args := append([]string{"-r", "@127.0.0.1", "-p", port}, append(strings.Fields(c.args), network, "+tries=1", "+time=10")...)
				out, err := exec.CommandContext(t.Context(), dig, args...).CombinedOutput()
				if err != nil {
					t.Fatalf("dig %v: %v\n%s", args, err, out)
				}
				text := strings.Join(strings.FieldsFunc(string(out), func(r rune) bool { return r == ' ' || r == '\t' }), " ")
				for _, want := range c.want {
					if !strings.Contains(text, want) {
						t.Errorf("dig %v prints no %q:\n%s", args, want, out)
					}
				}
				for _, bad := range []string{"WARNING", "malformed", "mismatch", "extra bytes"} {
					if strings.Contains(text, bad) {
						t.Errorf("dig %v prints %q:\n%s", args, bad, out)
					}
				}
			})
		}
	}
}
