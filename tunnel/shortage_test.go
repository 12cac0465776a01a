package tunnel_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"culvert/tunnel"
	"culvert/tunnel/tunneltest"
)

// A flow that finds no file or port to go on with ends as full, in the metrics and in a record that says what
// is missing; it is no connection that was shed.
func TestDialWithoutFileOrPort(t *testing.T) {
	for _, tt := range []struct {
		name  string
		errno syscall.Errno
		want  string
	}{
		{"files of the process", syscall.EMFILE, "LimitNOFILE="},
		{"files of the system", syscall.ENFILE, "fs.file-max"},
		{"ports", syscall.EADDRNOTAVAIL, "ip_local_port_range"},
		{"memory", syscall.ENOBUFS, "no more memory"},
	} {
		fail := func(e *tunnel.Env) {
			e.Dial = func(context.Context, netip.AddrPort) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", tt.errno)}
			}
		}
		t.Run(tt.name+" for a destination", func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{ExitEnv: fail})
			if err := p.Refusal(testContext(t), "10.0.0.2:80"); tunnel.CauseOf(err) != tunnel.CauseFull {
				t.Errorf("dial = %v, want the cause full from the exit", err)
			}
			p.Entry.Close()
			p.Exit.Close()
			if s := p.Exit.Stats(); s.Ended["full"] != 1 || s.DialFailures != 1 || s.Shed != 0 {
				t.Errorf("%d flows ended as full, %d dials failed, %d shed; want 1, 1, 0", s.Ended["full"], s.DialFailures, s.Shed)
			}
			if !strings.Contains(p.Log.String(), tt.want) || !strings.Contains(p.Log.String(), "by=exit") {
				t.Errorf("the records do not say %q, and that it is the exit that lacks it: %s", tt.want, p.Log)
			}
		})
		t.Run(tt.name+" for a hop", func(t *testing.T) {
			p := tunneltest.NewPair(t, tunneltest.Options{EntryEnv: fail})
			err := p.Refusal(testContext(t), "10.0.0.2:80")
			if tunnel.CauseOf(err) != tunnel.CauseFull || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("dial = %v, want the cause full and %q", err, tt.want)
			}
		})
	}
}
