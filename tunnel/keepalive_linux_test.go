package tunnel

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// A flow that has fallen silent has the system look after both sockets, with the configured silence; one that
// has not does without.
func TestSilentFlowIsWatched(t *testing.T) {
	ends := func() (near, far *net.TCPConn) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		a, err := (&net.Dialer{KeepAlive: -1}).Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a.(*net.TCPConn), b.(*net.TCPConn)
	}
	app, _ := ends()
	dest, _ := ends()
	over := make(chan struct{})
	f := &Flow{Target: Target{Host: "a", Port: 1}, Ended: func() { close(over) }}
	f.prepare(testGateway(), 1, testPlan(TimeoutConfig{KeepAlive: 7 * time.Second}))
	go f.relay(newSocket(app), nil, newSocket(dest)) // ends with the flow; waited for below
	for !f.stands() {
		time.Sleep(time.Millisecond)
	}
	for _, c := range []*net.TCPConn{app, dest} {
		if on, _ := keepAliveOf(t, c); on {
			t.Error("keep-alive is on before the flow is silent")
		}
	}
	f.renew()
	for _, c := range []*net.TCPConn{app, dest} {
		if on, idle := keepAliveOf(t, c); !on || idle != 7 {
			t.Errorf("keep-alive of a silent flow: %v after %d s, want true after 7", on, idle)
		}
	}
	f.cut(&Error{Cause: CauseCut})
	<-over
}

func keepAliveOf(t *testing.T, c *net.TCPConn) (on bool, idle int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			v, _ := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_KEEPALIVE)
			on = v != 0
			idle, _ = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE)
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return on, idle
}
