package workloadapi

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A process that has ended is not believed to be the one that has its number now, with a handle of the process and
// without one, as before Linux 6.5.
func TestProcessThatEnded(t *testing.T) {
	for name, handle := range map[string]bool{"with a handle": true, "by its start": false} {
		t.Run(name, func(t *testing.T) {
			child := exec.Command("sleep", "1000")
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			ended := false
			end := func() {
				if !ended {
					ended = true
					_ = child.Process.Kill()
					_ = child.Wait() // killed
				}
			}
			defer end()
			pid := int32(child.Process.Pid)
			start, err := startTime(pid)
			if err != nil {
				t.Fatal(err)
			}
			p := &peer{pid: pid, start: start, pidfd: -1}
			if handle {
				if p.pidfd, err = unix.PidfdOpen(int(pid), 0); err != nil {
					t.Fatal(err)
				}
			}
			defer p.close()
			if got, err := p.attest(); err != nil || filepath.Base(got.path) == "" || got.pid != pid {
				t.Fatalf("attest = %v, %v", got, err)
			}
			end()
			if got, err := p.attest(); err == nil {
				t.Errorf("after its end: %v", got)
			}
			// Another process with that number: who runs this test lives, and is not the one that connected. This process itself may
			// have started in the same hundredth of a second, which is all that a start tells.
			p.pid = int32(os.Getppid())
			if got, err := p.attest(); !errors.Is(err, errEnded) {
				t.Errorf("another with its number: %v, %v", got, err)
			}
		})
	}
}

// The kernel says who is at the other end: here this process.
func TestPeerOf(t *testing.T) {
	dir, err := os.MkdirTemp("", "w")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := listen(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	nc, err := net.Dial("unix", ln.path)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	got, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c, ok := got.(*conn)
	if !ok {
		t.Fatalf("a connection of type %T", got)
	}
	if c.peer.pid != int32(os.Getpid()) || c.peer.uid != uint32(os.Getuid()) || c.peer.gid != uint32(os.Getgid()) {
		t.Errorf("the peer is %+v", c.peer)
	}
	if ln.open != 1 {
		t.Errorf("%d connections are counted, want 1", ln.open)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil || ln.open != 0 || len(ln.users) != 0 {
		t.Errorf("Close twice = %v, and %d connections are counted", err, ln.open)
	}
}

func FuzzParseEntry(f *testing.F) {
	for _, text := range []string{
		"uid=1000,path=/usr/bin/app=spiffe://cluster.local/ns/default/sa/app", "gid=0=spiffe://a/b", "=spiffe://a/b", "uid=-1=spiffe://a/b",
		"uid=4294967296=spiffe://a/b", "path=app=spiffe://a/b", "path=/a/../b=spiffe://a/b", "path=/a=spiffe://b=spiffe://c/d", "name=x=spiffe://a/b", "",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := ParseEntry(text)
		if err != nil {
			return
		}
		if e.UID == nil && e.GID == nil && e.Path == "" {
			t.Errorf("%q is an entry for everybody", text)
		}
		if e.Path != "" && !filepath.IsAbs(e.Path) {
			t.Errorf("%q has the path %q", text, e.Path)
		}
	})
}

func TestParseEntry(t *testing.T) {
	e, err := ParseEntry("uid=1000,gid=7,path=/usr/bin/app=spiffe://cluster.local/ns/default/sa/app")
	if err != nil || *e.UID != 1000 || *e.GID != 7 || e.Path != "/usr/bin/app" || e.ID != "spiffe://cluster.local/ns/default/sa/app" {
		t.Errorf("ParseEntry = %+v, %v", e, err)
	}
	for _, text := range []string{"", "uid=1000", "=spiffe://a/b", "uid==spiffe://a/b", "uid=-1=spiffe://a/b", "uid=4294967296=spiffe://a/b",
		"path=app=spiffe://a/b", "path=/a/../b=spiffe://a/b", "name=x=spiffe://a/b"} {
		if e, err := ParseEntry(text); err == nil {
			t.Errorf("ParseEntry(%q) = %+v", text, e)
		}
	}
}
