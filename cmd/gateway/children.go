package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// childEnd is what the gateways of a demo have to end; then they are killed.
const childEnd = 2 * time.Second

// children are gateways in processes of their own, which end with this one. One goroutine uses it.
type children struct {
	list  []*child
	ended chan *child // every gateway that ended, for whatever reason
	log   io.Writer
	logMu sync.Mutex // held while a line goes to log
}

// child is one `gateway run`.
type child struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output was copied
	err  error         // why; to be read after done
}

// maxChildren is the size of the channel that tells of ended ones.
const maxChildren = 4

func newChildren(log io.Writer) *children {
	return &children{ended: make(chan *child, maxChildren), log: log}
}

// start runs this program once more, with listeners as inherited sockets. The caller keeps its copies of
// them.
func (cs *children) start(name string, args []string, listeners ...net.Listener) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c := &child{name: name, cmd: exec.Command(self, args...), done: make(chan struct{})}
	for _, ln := range listeners {
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			panic("BUG: a TCP listener that is not one")
		}
		f, err := tcp.File()
		if err != nil {
			return err
		}
		defer f.Close()
		c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, f)
	}
	c.cmd.Env = append(withoutServiceManager(os.Environ()), "LISTEN_FDS="+strconv.Itoa(len(listeners)))
	c.cmd.Stderr = &prefixWriter{prefix: fmt.Sprintf("%-5s | ", name), to: cs.log, mu: &cs.logMu}
	c.cmd.Stdout = c.cmd.Stderr
	endWithParent(c.cmd)
	if err := c.cmd.Start(); err != nil {
		return fmt.Errorf("start the %s gateway: %w", name, err)
	}
	cs.list = append(cs.list, c)
	// Ends when the process does; end sees to that and waits for it.
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
		cs.ended <- c
	}()
	return nil
}

// end asks every gateway to end, and kills those that take too long.
func (cs *children) end() {
	for _, c := range cs.list {
		_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	}
	deadline := time.NewTimer(childEnd)
	defer deadline.Stop()
	for _, c := range cs.list {
		select {
		case <-c.done:
		case <-deadline.C:
			deadline.Reset(0) // for the next one too
			_ = c.cmd.Process.Kill()
			<-c.done
		}
	}
}

// reason is why a gateway that should run does not.
func (c *child) reason() error {
	cause := c.err
	if cause == nil {
		cause = errors.New("without an error")
	}
	return fmt.Errorf("the %s gateway ended: %w; its lines above say why", c.name, cause)
}

// withoutServiceManager drops what systemd meant for the parent.
func withoutServiceManager(env []string) []string {
	var kept []string
	for _, e := range env {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "STATE_DIRECTORY":
		default:
			kept = append(kept, e)
		}
	}
	return kept
}

// prefixWriter puts a name before every line. One goroutine writes to it; several write to the same to.
type prefixWriter struct {
	prefix  string
	to      io.Writer
	mu      *sync.Mutex // guards to
	partial string      // the beginning of a line
}

// Write passes whole lines on and keeps the rest for the next call.
func (w *prefixWriter) Write(p []byte) (int, error) {
	text := w.partial + string(p)
	w.partial = ""
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(text) {
		if !strings.HasSuffix(line, "\n") {
			w.partial = line
			break
		}
		if _, err := io.WriteString(w.to, w.prefix+line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
