package main_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// hosts are three hosts, each a network namespace, as far apart as the kernel of one machine allows:
//
//	     app                          mid                           far
//	10.1.0.1, fd01::1 ─── 10.1.0.2, fd01::2 · 10.2.0.1, fd02::1 ─── 10.2.0.2, fd02::2
//	apps and the gateway           a router, with a gateway           servers
//	that captures them             that flows leave from
//
// A flow that goes its own way has the source 10.1.0.1 at a server; one that went through a tunnel to mid has 10.2.0.1.
type hosts struct {
	*mesh
	app, mid, far *host
}

// The addresses of hosts, of IPv4 and of IPv6.
const (
	appAddr, appAddr6 = "10.1.0.1", "fd01::1"
	midAddr, midAddr6 = "10.1.0.2", "fd01::2" // as app sees it
	outAddr, outAddr6 = "10.2.0.1", "fd02::1" // as far sees it
	farAddr, farAddr6 = "10.2.0.2", "fd02::2"

	// The whoServers.
	app4, app6 = appAddr + ":7", "[" + appAddr6 + "]:7"
	far4, far6 = farAddr + ":7", "[" + farAddr6 + "]:7"

	midHop = midAddr + ":15008" // a gateway on mid, if there is one
)

// host is a network namespace.
type host struct {
	t    *testing.T
	name string
	fd   int // of the namespace
}

// hostNumber makes the names of namespaces unique in this process.
var hostNumber atomic.Int64

// newHosts makes the hosts, with whoServers on app and far, and a web server on far. They live until the test ends.
func newHosts(t *testing.T) *hosts {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	h := &hosts{mesh: newMesh(t)}
	h.app, h.mid, h.far = newHost(t, "app"), newHost(t, "mid"), newHost(t, "far")
	h.app.wire(h.mid, "eth0", "eth0", [2]string{appAddr, midAddr}, [2]string{appAddr6, midAddr6})
	h.mid.wire(h.far, "eth1", "eth0", [2]string{outAddr, farAddr}, [2]string{outAddr6, farAddr6})
	h.app.ip("route", "add", "default", "via", midAddr)
	h.app.ip("-6", "route", "add", "default", "via", midAddr6)
	h.far.ip("route", "add", "default", "via", outAddr)
	h.far.ip("-6", "route", "add", "default", "via", outAddr6)
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		h.mid.run("sysctl", "-qw", name+"=1")
	}
	h.app.whoServer(app4)
	h.app.whoServer(app6)
	h.far.whoServer(far4)
	h.far.whoServer(far6)
	h.far.web(net.JoinHostPort(farAddr, "80"))
	h.far.web(net.JoinHostPort(farAddr6, "80"))
	return h
}

func newHost(t *testing.T, name string) *host {
	t.Helper()
	h := &host{t: t, name: fmt.Sprintf("culvert-%d-%d-%s", os.Getpid(), hostNumber.Add(1), name)}
	run(t, "ip", "netns", "add", h.name)
	t.Cleanup(func() { // the test's context is over by now
		if out, err := exec.Command("ip", "netns", "del", h.name).CombinedOutput(); err != nil {
			t.Errorf("the host %s is left behind: %s", h.name, out)
		}
	})
	var err error
	if h.fd, err = unix.Open("/run/netns/"+h.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(h.fd) })
	h.ip("link", "set", "lo", "up")
	h.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0") // nobody else is there
	return h
}

// wire connects two hosts by a cable, with the addresses of both ends.
func (h *host) wire(to *host, mine, theirs string, pairs ...[2]string) {
	h.t.Helper()
	h.ip("link", "add", mine, "type", "veth", "peer", "name", theirs, "netns", to.name)
	for i, end := range []struct {
		*host
		dev string
	}{{h, mine}, {to, theirs}} {
		for _, pair := range pairs {
			if strings.Contains(pair[i], ":") {
				end.ip("addr", "add", pair[i]+"/64", "dev", end.dev, "nodad")
			} else {
				end.ip("addr", "add", pair[i]+"/24", "dev", end.dev)
			}
		}
		end.ip("link", "set", end.dev, "up")
	}
	for _, end := range []struct {
		*host
		dev string
	}{{h, mine}, {to, theirs}} { // the system goes on by itself
		within(end.t, "interface ready", func() error {
			if tentative := end.run("ip", "-6", "addr", "show", "tentative"); tentative != "" {
				return errors.New(tentative)
			}
			if local := end.run("ip", "-6", "route", "show", "table", "local", "dev", end.dev); strings.Count(local, "local fe80:") != 1 || !strings.Contains(local, "multicast ff00::/8") {
				return errors.New(local)
			}
			return nil
		})
	}
}

func (h *host) ip(args ...string) {
	h.t.Helper()
	run(h.t, "ip", append([]string{"-n", h.name}, args...)...)
}

// run runs a program on the host and returns what it prints.
func (h *host) run(name string, args ...string) string {
	h.t.Helper()
	return run(h.t, "ip", append([]string{"netns", "exec", h.name, program(h.t, name)}, args...)...)
}

// try is run for programs that may fail.
func (h *host) try(name string, args ...string) (stdout, stderr string, err error) {
	h.t.Helper()
	return try(h.t, "ip", append([]string{"netns", "exec", h.name, program(h.t, name)}, args...)...)
}

// do calls f in a thread that is on the host: sockets that it makes are the host's. f must not look up names. The
// thread goes back afterwards and lives on: the end of a thread kills the programs that were started by it.
func (h *host) do(f func()) {
	h.t.Helper()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(here)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Setns(h.fd, unix.CLONE_NEWNET); err != nil {
		h.t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(here, unix.CLONE_NEWNET); err != nil {
			panic("a thread is lost on " + h.name)
		}
	}()
	f()
}

// dial connects from the host to an address.
func (h *host) dial(ctx context.Context, network, addr string) (nc net.Conn, err error) {
	h.do(func() { nc, err = new(net.Dialer).DialContext(ctx, network, addr) })
	return nc, err
}

// listen opens a TCP listener on the host.
func (h *host) listen(addr string) (ln net.Listener) {
	h.t.Helper()
	var err error
	h.do(func() { ln, err = net.Listen("tcp", addr) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = ln.Close() })
	return ln
}

// whoServer answers every connection with the address that it comes from, and then says what it is told.
func (h *host) whoServer(addr string) {
	h.t.Helper()
	ln := h.listen(addr)
	go func() { // ends with the listener, which the cleanup closes
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer nc.Close()
				host, _, _ := net.SplitHostPort(nc.RemoteAddr().String())
				_, _ = io.WriteString(nc, host+"\n")
				_, _ = io.Copy(nc, nc)
			}()
		}
	}()
}

// web serves a page on the host that says where the request came from and what host it names.
func (h *host) web(addr string) {
	h.t.Helper()
	ln := h.listen(addr)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s asked for %s%s\n", host, r.Host, r.URL.Path)
	})}
	go func() { _ = srv.Serve(ln) }() // ends with Close
	h.t.Cleanup(func() { _ = srv.Close() })
}

// from connects to a whoServer and returns the address that it sees. The connection is open still.
func (h *host) from(addr string) (string, net.Conn, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), patience)
	defer cancel()
	nc, err := h.dial(ctx, "tcp", addr)
	if err != nil {
		return "", nil, err
	}
	_ = nc.SetDeadline(deadline())
	line := make([]byte, 0, 64)
	for b := make([]byte, 1); len(line) < cap(line); line = append(line, b[0]) {
		if _, err := io.ReadFull(nc, b); err != nil {
			_ = nc.Close()
			return "", nil, err
		}
		if b[0] == '\n' {
			return string(line), nc, nil
		}
	}
	_ = nc.Close()
	return "", nil, errors.New("the server does not stop talking")
}

// opens connects to a whoServer, which must see the flow come from want. The connection is closed with the test.
func (h *host) opens(addr, want string) net.Conn {
	h.t.Helper()
	got, nc, err := h.from(addr)
	if err != nil {
		h.t.Fatalf("%s to %s: %v", h.name, addr, err)
	}
	h.t.Cleanup(func() { _ = nc.Close() })
	if got != want {
		h.t.Fatalf("a flow to %s comes from %s, want %s", addr, got, want)
	}
	return nc
}

// wantFrom checks how a flow from the host to a whoServer arrives there, and that it carries bytes.
func (h *host) wantFrom(addr, want string) {
	h.t.Helper()
	nc := h.opens(addr, want)
	defer nc.Close()
	echoes(h.t, nc, "hello")
}

// gatewayOn starts a gateway on a host. Its admin address is on loopback there.
func (m *mesh) gatewayOn(t *testing.T, h *host, name string, flag ...string) *gateway {
	t.Helper()
	return m.commandOn(t, h, "run", "127.0.0.1:15000", name, flag...)
}

// commandOn is gatewayOn for a command that runs one, with its admin address.
func (m *mesh) commandOn(t *testing.T, h *host, command, admin, name string, flag ...string) *gateway {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{admin: admin, dials: h.dial}
	args := []string{"netns", "exec", h.name, self, command, "--state", t.TempDir(), "--admin", g.admin}
	if name != "" { // else the configuration says who it is
		args = append(args, "--cert", m.path(name+".pem"), "--key", m.path(name+".key"), "--roots", m.path("root.pem"))
	}
	args = append(args, flag...)
	cmd := exec.Command(program(t, "ip"), args...)
	cmd.Env = append(os.Environ(), asGateway+"=1")
	g.process = start(t, cmd)
	g.ready(t)
	return g
}

// gateway runs a command of the gateway on the host and returns what it prints.
func (h *host) gateway(args ...string) string {
	h.t.Helper()
	out, errs, err := h.tryGateway(args...)
	if err != nil {
		h.t.Fatalf("gateway %s: %v\n%s%s", strings.Join(args, " "), err, out, errs)
	}
	return out
}

// captured waits until the host's new flows are captured.
func (h *host) captured() {
	h.t.Helper()
	within(h.t, "captured", func() error {
		if status := h.gateway("capture", "status"); !strings.Contains(status, "open: new flows are captured") {
			return errors.New(status)
		}
		return nil
	})
}

func (h *host) tryGateway(args ...string) (stdout, stderr string, err error) {
	h.t.Helper()
	self, err := os.Executable()
	if err != nil {
		h.t.Fatal(err)
	}
	return try(h.t, "ip", append([]string{"netns", "exec", h.name, "env", asGateway + "=1", self}, args...)...)
}

// rules is all of the host's rules: what `gateway capture remove` must leave as it was.
func (h *host) rules() string {
	h.t.Helper()
	var b strings.Builder
	for _, c := range [][]string{
		{"nft", "list", "ruleset"}, {"ip", "rule"}, {"ip", "-6", "rule"}, {"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"}, {"ipset", "list"}, {"sysctl", "-a"},
	} {
		out, _, err := h.try(c[0], c[1:]...)
		if err != nil {
			h.t.Fatalf("%v: %v", c, err)
		}
		for line := range strings.Lines(out) {
			if c[0] != "sysctl" || strings.HasPrefix(line, "net.ipv") && !strings.Contains(line, "expires") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}
