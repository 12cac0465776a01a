package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// restartTime is what a new process has to get ready: it reads files and opens sockets, and waits for
	// nobody.
	restartTime = 30 * time.Second
	// restartEnd is what a new process that did not get ready has to end, before it is killed. It drains, for
	// it may have accepted something.
	restartEnd = 5 * time.Second

	// readyVariable tells a new process on which file descriptor the old one waits for readyWord.
	readyVariable = "CULVERT_READY_FD"
	readyWord     = "READY=1\n"
)

// successor is a new process that takes the place of this one.
type successor struct {
	cmd   *exec.Cmd
	ready chan error    // gets nil when it serves, else why it will not
	done  chan struct{} // closed when the process has ended
	heard *os.File      // where it says that it is ready
}

// startSuccessor starts the program that stands now where this one was started from, with the same arguments and
// environment, and hands it every listening socket. Both accept from then on until this process stops.
func (m *manager) startSuccessor() (*successor, error) {
	if os.Getpid() == 1 {
		return nil, errors.New("a container ends with its first process; replace the container, or run the gateway under an init")
	}
	files, err := m.sockets.files()
	defer func() {
		for _, f := range files {
			_ = f.Close() // the new process has its own
		}
	}()
	if err != nil {
		return nil, err
	}
	path, err := programPath()
	if err != nil {
		return nil, err
	}
	heard, says, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer says.Close()
	s := &successor{ready: make(chan error, 1), done: make(chan struct{}), heard: heard}
	s.cmd = exec.Command(path)
	s.cmd.Args = os.Args
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	s.cmd.ExtraFiles = append(files[:len(files):len(files)], says)
	s.cmd.Env = append(successorEnvironment(os.Environ()), "LISTEN_FDS="+strconv.Itoa(len(files)),
		readyVariable+"="+strconv.Itoa(firstInheritedFD+len(files)))
	if err := s.cmd.Start(); err != nil {
		_ = heard.Close()
		return nil, err
	}
	go s.waitLoop()         // ends with the new process; nobody waits, as that outlives this one if all goes well
	go s.await(restartTime) // ends some restartEnd after its time at the latest; loop receives what it says
	return s, nil
}

// programPath is where this program was started from. What was started by an absolute path is looked up there
// again, through symbolic links, so that a link to a new version counts.
func programPath() (string, error) {
	if filepath.IsAbs(os.Args[0]) {
		return os.Args[0], nil
	}
	return os.Executable()
}

// successorEnvironment is env without what was meant for this process by its number.
func successorEnvironment(env []string) []string {
	ours := "WATCHDOG_PID=" + strconv.Itoa(os.Getpid())
	var kept []string
	for _, e := range env {
		if e != ours {
			kept = append(kept, e)
		}
	}
	return kept
}

// waitLoop waits for the end of the new process.
func (s *successor) waitLoop() {
	_ = s.cmd.Wait() // how it ended is in ProcessState
	close(s.done)
}

// await hears whether the new process gets ready within limit, and ends it if it does not.
func (s *successor) await(limit time.Duration) {
	_ = s.heard.SetReadDeadline(time.Now().Add(limit)) // a pipe has deadlines
	line, err := bufio.NewReader(io.LimitReader(s.heard, int64(len(readyWord)))).ReadString('\n')
	_ = s.heard.Close() // a new process that comes too late sees that nobody waits
	switch {
	case line == readyWord:
		s.ready <- nil
		return
	case err == nil:
		err = fmt.Errorf("the new process says %q, want %q", line, readyWord)
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = fmt.Errorf("the new process was not ready within %v", limit)
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-s.done:
	case <-time.After(restartEnd):
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("the new process ended before it was ready (%v); its lines above say why", s.cmd.ProcessState)
	}
	s.ready <- err
}

// restart begins to put a new process in the place of this one. What becomes of it comes out of next.ready.
func (m *manager) restart() {
	if m.next != nil {
		m.log.Warn("a restart is under way already")
		return
	}
	m.notify.reloading()
	next, err := m.startSuccessor()
	if err != nil {
		m.notRestarted(err)
		return
	}
	m.next = next
	m.log.Info("restarting", "pid", next.cmd.Process.Pid)
}

// notRestarted notes that this process goes on.
func (m *manager) notRestarted(err error) {
	m.next = nil
	m.log.Error("not restarted: this process goes on", "err", err)
	m.notify.ready()
}

// handOver leaves the place to the new process, which serves already. Whoever is connected to this one stays until
// the end of the drain.
func (m *manager) handOver() {
	m.handedOver = true
	m.sockets.keepPaths()
	m.log.Info("restarted: the new process serves", "pid", m.next.cmd.Process.Pid)
	m.notify.handOver(m.next.cmd.Process.Pid)
	m.releaseAdmin()
}

// restarted is what becomes of a restart; nil, which never comes, while none is under way.
func (m *manager) restarted() <-chan error {
	if m.next == nil {
		return nil
	}
	return m.next.ready
}

// successorEnded is closed when the process has ended that took this one's place.
func (m *manager) successorEnded() <-chan struct{} {
	if m.next == nil {
		return nil
	}
	return m.next.done
}

// giveUpRestart ends a new process that is not ready, because this one was told to end.
func (m *manager) giveUpRestart() {
	if m.next != nil {
		_ = m.next.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		m.next = nil
	}
}

// predecessor is the process in whose place this one was started; nil in nobody's place.
type predecessor struct{ waits *os.File }

// inheritPredecessor takes what startSuccessor has handed over. It clears the variable, so that no child takes it
// again.
func inheritPredecessor() (*predecessor, error) {
	text := os.Getenv(readyVariable)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(readyVariable); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil || fd < firstInheritedFD || fd > firstInheritedFD+maxInherited {
		return nil, fmt.Errorf("%s=%q is not a file descriptor", readyVariable, text)
	}
	syscall.CloseOnExec(fd)
	return &predecessor{waits: os.NewFile(uintptr(fd), "predecessor")}, nil
}

// ready tells the predecessor that this process serves. An error means that it waits no longer, and goes on
// itself.
func (p *predecessor) ready() error {
	if p == nil {
		return nil
	}
	defer p.waits.Close()
	if _, err := io.Copy(p.waits, strings.NewReader(readyWord)); err != nil {
		return fmt.Errorf("the process before goes on: %w", err)
	}
	return nil
}
