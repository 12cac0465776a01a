package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// adminFiles is how many files are kept for the admin address: a probe, a scrape and a person with
	// curl at the same time, with some for who takes a file in the moment between.
	adminFiles = 8
	// adminFilesEach is how many of them are given up for a connection: one is its own, the other is for
	// what answering opens, such as /proc.
	adminFilesEach = 2
	// adminAcceptWait is how long the attempt to accept may take for which files were given up. Whoever it
	// is for is waiting already.
	adminAcceptWait = 50 * time.Millisecond
	// adminRefillPause is how long the next try to get files back waits after one that got none.
	adminRefillPause = 100 * time.Millisecond
)

// adminListener accepts also when the process has no file left, which is when an operator has to look: it
// holds some files only to give them up then, and takes as many again when connections have ended.
type adminListener struct {
	*net.TCPListener

	mu     sync.Mutex
	spare  []*os.File  // guarded by mu
	lent   int         // files that were given up for connections which are open; guarded by mu
	again  *time.Timer // calls refill, nil before files were missed; guarded by mu
	closed bool        // guarded by mu
}

// listenAdmin opens the socket of the admin address.
func listenAdmin(s *sockets, address string) (net.Listener, error) {
	ln, err := s.listen(tcpSocket(address))
	if err != nil {
		return nil, fmt.Errorf("admin address: %w", err)
	}
	l := &adminListener{TCPListener: ln.(*net.TCPListener)}
	l.refill()
	return l, nil
}

// Accept waits for a connection. Without files for it, or for the next try, it returns the system's error;
// http.Server then waits, up to a second, before it calls again.
func (l *adminListener) Accept() (net.Conn, error) {
	l.refill()
	given := 0
	for {
		nc, err := l.TCPListener.Accept()
		// A try that found nobody any more ends by its deadline: the files are taken back and the wait goes on.
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = l.SetDeadline(time.Time{}) // Accept says what is wrong with the socket
			l.takeBack(given)
			given = 0
			continue
		}
		if err == nil {
			_ = l.SetDeadline(time.Time{}) // as above
			return &adminConn{Conn: nc, l: l, given: given}, nil
		}
		n := 0
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			n = l.giveUp()
		}
		if n == 0 {
			l.takeBack(given)
			return nil, err
		}
		given += n
		_ = l.SetDeadline(time.Now().Add(adminAcceptWait)) // without it the files would be missed for longer
	}
}

// giveUp closes adminFilesEach of the files, fewer if there are no more, and returns how many. Others of the
// process may be quicker to take them; then the caller gives up more.
func (l *adminListener) giveUp() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(adminFilesEach, len(l.spare))
	keep := len(l.spare) - n
	for _, f := range l.spare[keep:] {
		_ = f.Close() // it is open
	}
	l.spare = l.spare[:keep]
	l.lent += n
	return n
}

// takeBack ends the lending of n files.
func (l *adminListener) takeBack(n int) {
	l.mu.Lock()
	l.lent -= n
	l.mu.Unlock()
	l.refill()
}

// refill opens files until there are adminFiles, those that are lent included. Where none is to be had it
// tries again later, so that what others took in between comes back when they end.
func (l *adminListener) refill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && len(l.spare)+l.lent < adminFiles {
		f, err := os.Open(os.DevNull)
		if err == nil {
			l.spare = append(l.spare, f)
			continue
		}
		if l.again == nil {
			l.again = time.AfterFunc(adminRefillPause, l.refill) // Close stops it
		} else {
			l.again.Reset(adminRefillPause)
		}
		return
	}
}

// Close ends the accepting and gives the files back.
func (l *adminListener) Close() error {
	l.mu.Lock()
	l.closed = true
	if l.again != nil {
		l.again.Stop() // one that runs finds the listener closed
	}
	for _, f := range l.spare {
		_ = f.Close() // it is open
	}
	l.spare = nil
	l.mu.Unlock()
	return l.TCPListener.Close()
}

// adminConn is an accepted connection. The files that were given up for it are kept again when it has ended.
type adminConn struct {
	net.Conn
	l     *adminListener
	given int
	once  sync.Once
}

// Close closes the connection.
func (c *adminConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { c.l.takeBack(c.given) })
	return err
}
