package main_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
)

// configured starts a gateway of a file, in which $ADDR becomes the address of its one listener, and who it is and
// its admin address are added.
func (m *mesh) configured(t *testing.T, name, text string) *gateway {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ln, admin := loopback(t), loopback(t)
	g := &gateway{addr: ln.Addr().String(), admin: admin.Addr().String()}
	text = "identity: {cert: " + name + ".pem, key: " + name + ".key, roots: root.pem}\nadmin: {address: \"" + g.admin + "\"}\n" + text
	file := m.write(t, name+".yaml", []byte(strings.ReplaceAll(text, "$ADDR", g.addr)))
	cmd := exec.Command(self, "run", "--state", t.TempDir(), "-c", file)
	cmd.Env = append(os.Environ(), asGateway+"=1", "LISTEN_FDS=2")
	for _, l := range []*net.TCPListener{ln, admin} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	g.process = start(t, cmd)
	within(t, "gateway ready", func() error {
		if err := g.alive(); err != nil {
			t.Fatal(err)
		}
		_, err := g.get("/readyz")
		return err
	})
	return g
}

// nameServer answers every question for an address of IPv4 with 127.0.0.1, and others with nothing. It counts them.
func nameServer(t *testing.T) (addr string, asked *atomic.Int64) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(atomic.Int64)
	srv := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable = true
		rr, err := dns.NewRR("example. 60 IN SOA ns.example. root.example. 1 2 3 4 60")
		if q.Question[0].Qtype == dns.TypeA {
			rr, err = dns.NewRR(q.Question[0].Name + " 60 IN A 127.0.0.1")
			m.Answer = []dns.RR{rr}
		} else {
			m.Ns = []dns.RR{rr}
		}
		if err == nil {
			err = w.WriteMsg(m)
		}
		if err != nil {
			t.Errorf("the name server cannot answer: %v", err)
		}
	})}
	ended := make(chan struct{})
	go func() { // ends with Shutdown; the cleanup waits for it
		_ = srv.ActivateAndServe()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = srv.Shutdown()
		<-ended
	})
	return pc.LocalAddr().String(), asked
}

// Names are asked for once as long as the answer lasts, at the resolver of the file.
func TestNamesAreResolvedOnce(t *testing.T) {
	m := newMesh(t)
	resolver, asked := nameServer(t)
	server := serve(t, func(nc *net.TCPConn) { _, _ = nc.Write([]byte("hello")) })
	_, port, _ := net.SplitHostPort(server)
	g := m.configured(t, "client", `
resolver: {upstream: ["`+resolver+`"]}
listeners: [{name: apps, kind: forward, address: "$ADDR", to: "www.example:`+port+`"}]
routes: [{hosts: [www.example]}]
policy: {egress: ["127.0.0.0/8"]}
`)
	for range 3 {
		nc, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := nc.Read(b); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v, want hello", b, err)
		}
		_ = nc.Close()
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the resolver was asked %d times, want 2: for both families, once", n)
	}
}
