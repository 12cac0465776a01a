package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const (
	// StartPatience bounds the time until what was started carries its first byte.
	StartPatience = 20 * time.Second
	// Poll is how often that is tried, and whatever else is waited for.
	Poll = 20 * time.Millisecond
	// endPatience is what a process has to end before it is killed.
	endPatience = 3 * time.Second
	// logTailBytes is how much of a process's output an error shows.
	logTailBytes = 2000
)

// Process is a program that was started. Its output goes to a file.
type Process struct {
	Name string // for errors

	cmd  *exec.Cmd
	log  string        // path of its output
	done chan struct{} // closed when it has ended
	err  error         // why; to be read after done
}

// Start starts a program whose output goes to NAME.log in dir. It ends with the thread that calls: lock it.
func Start(dir, name string, program string, args ...string) (*Process, error) {
	p := &Process{Name: name, log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
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

// PID is the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Alive says with an error that and why p has ended.
func (p *Process) Alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("the %s has ended: %w: %s", p.Name, errors.Join(p.err, io.ErrUnexpectedEOF), p.Tail())
	default:
		return nil
	}
}

// Wait waits until p has ended by itself, and says with an error that it has failed.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return fmt.Errorf("the %s: %w: %s", p.Name, p.err, p.Tail())
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Tail is the end of p's output.
func (p *Process) Tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	if len(text) > logTailBytes {
		text = text[len(text)-logTailBytes:]
	}
	return string(bytes.TrimSpace(text))
}

// Stop ends p and what it has started, and returns when they are gone.
func (p *Process) Stop() {
	family := descendants(p.PID())
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

// FreeAddr finds a loopback address on which nobody listens, with a port that the kernel gives to no connection of
// its own accord, so that nobody takes it before the process does.
func FreeAddr() (string, error) {
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

// Group is processes that are measured together, in the order in which they were started.
type Group struct{ Processes []*Process }

// Add starts one more process.
func (g *Group) Add(dir, name, program string, args ...string) error {
	p, err := Start(dir, name, program, args...)
	if err != nil {
		return err
	}
	g.Processes = append(g.Processes, p)
	return nil
}

// Stop ends the processes, the last one first.
func (g *Group) Stop() {
	for _, p := range slices.Backward(g.Processes) {
		p.Stop()
	}
}

// Alive says with an error that and why one of them has ended.
func (g *Group) Alive() error {
	for _, p := range g.Processes {
		if err := p.Alive(); err != nil {
			return err
		}
	}
	return nil
}

// Usage is that of all of them.
func (g *Group) Usage() (all Usage, err error) {
	for _, p := range g.Processes {
		u, err := p.Usage()
		if err != nil {
			return Usage{}, err
		}
		all.CPU += u.CPU
		all.ResidentBytes += u.ResidentBytes
	}
	return all, nil
}
