package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// startPatience bounds the time until a pair carries its first byte.
	startPatience = 20 * time.Second
	// startPoll is how often that is tried.
	startPoll = 20 * time.Millisecond
	// endPatience is what a proxy has to end before it is killed.
	endPatience = 3 * time.Second
	// logTailBytes is how much of a proxy's output an error shows.
	logTailBytes = 2000
)

// process is one proxy. Its output goes to a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // path of its output
	done chan struct{} // closed when it has ended
	err  error         // why; to be read after done
}

// startProcess starts a program whose output goes to dir.
func startProcess(dir, name string, program string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the process has its own copy
	p.cmd = exec.Command(program, args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	endWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the %s: %w", name, err)
	}
	// Ends when the process does; stop sees to that and waits for it.
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// alive says with an error that and why p has ended.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("the %s has ended: %w: %s", p.name, errors.Join(p.err, io.ErrUnexpectedEOF), p.tail())
	default:
		return nil
	}
}

// tail is the end of p's output.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(text) > logTailBytes {
		text = text[len(text)-logTailBytes:]
	}
	return string(bytes.TrimSpace(text))
}

// stop ends p and what it has started, and returns when they are gone.
func (p *process) stop() {
	family := descendants(p.cmd.Process.Pid)
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-p.done:
	case <-time.After(endPatience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	for _, d := range family {
		d.end()
	}
}

// freeAddr finds a loopback address on which nobody listens, with a port that the kernel gives to no connection of
// its own accord, so that nobody takes it before the proxy does.
func freeAddr() (string, error) {
	const first, last = 10_000, 32_000 // Linux begins with 32768
	for range 1000 {
		port := first + int(time.Now().UnixNano()/1000)%(last-first)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		return addr, ln.Close()
	}
	return "", errors.New("no free port on loopback")
}
