package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A new process that never gets ready is ended, and the one that waits hears why.
func TestSuccessorThatHangs(t *testing.T) {
	heard, says, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer says.Close()
	s := &successor{cmd: exec.Command("sleep", "60"), ready: make(chan error, 1), done: make(chan struct{}), heard: heard}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go s.waitLoop() // ends with the process, which await ends
	s.await(10 * time.Millisecond)
	if err := <-s.ready; err == nil || !strings.Contains(err.Error(), "not ready within 10ms") {
		t.Errorf("ready = %v, want that the time is over", err)
	}
	select {
	case <-s.done:
	default:
		t.Error("the new process lives")
	}
	if err := (&predecessor{says}).ready(); err == nil {
		t.Error("a new process that comes too late hears nothing of it")
	}
}

func TestInheritPredecessor(t *testing.T) {
	for text, ok := range map[string]bool{"": true, "two": false, "2": false, "-1": false, "100000": false} {
		t.Setenv(readyVariable, text)
		p, err := inheritPredecessor()
		if (err == nil) != ok || p != nil {
			t.Errorf("inheritPredecessor() with %q = %v, %v, want none, and an error: %v", text, p, err, !ok)
		}
	}
}

// The new process must hear of the watchdog, which is meant for the service and not for a process.
func TestSuccessorEnvironment(t *testing.T) {
	t.Setenv("WATCHDOG_PID", "1")
	if env := strings.Join(successorEnvironment(os.Environ()), "\n"); !strings.Contains(env, "WATCHDOG_PID=1") {
		t.Error("what is meant for another process was taken out")
	}
	mine := "WATCHDOG_PID=" + strconv.Itoa(os.Getpid())
	if got := successorEnvironment([]string{"A=1", mine, "B=2"}); len(got) != 2 || got[1] != "B=2" {
		t.Errorf("successorEnvironment = %q, want A and B", got)
	}
}

// A port that the system has chosen cannot be found again by its address.
func TestSocketsWithoutAPortAreNotHandedOver(t *testing.T) {
	s := new(sockets)
	ln, err := s.listen(tcpSocket("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := s.files()
	if err == nil || !strings.Contains(err.Error(), "give the listener a port") {
		t.Errorf("files() = %v, want a hint", err)
	}
	for _, f := range files {
		_ = f.Close()
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if files, err := s.files(); len(files) != 0 || err != nil {
		t.Errorf("files() of a socket that is closed = %v, %v, want none", files, err)
	}
}
