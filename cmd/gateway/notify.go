package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells systemd how the service is doing: one datagram per change to the socket named by
// $NOTIFY_SOCKET (sd_notify(3)). Without that variable every method does nothing.
type notifier struct {
	conn *net.UnixConn // nil when nobody listens
	// watchdog is how often the service manager wants a sign of life; 0 means never.
	watchdog time.Duration
}

// newNotifier reads what the service manager put in the environment.
func newNotifier(getenv func(string) string) (*notifier, error) {
	n := &notifier{}
	path := getenv("NOTIFY_SOCKET")
	if path == "" {
		return n, nil
	}
	// A leading @ stands for the NUL of an abstract socket, in Go as in systemd.
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return n, fmt.Errorf("service manager's socket: %w", err)
	}
	n.conn = conn
	usec, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	pid := getenv("WATCHDOG_PID")
	if err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		n.watchdog = time.Duration(usec) * time.Microsecond
	}
	return n, nil
}

func (n *notifier) ready()    { n.send("READY=1") }
func (n *notifier) stopping() { n.send("STOPPING=1") }
func (n *notifier) alive()    { n.send("WATCHDOG=1") }

// handOver tells that the service is ready and its main process another one from now on. It is the last that the
// service manager takes from this process, so nothing is sent after it.
func (n *notifier) handOver(pid int) {
	n.send(fmt.Sprintf("MAINPID=%d\nREADY=1\nWATCHDOG=1", pid))
	n.close()
}

// reloading announces a reload, which ends with ready. The time is what Type=notify-reload asks for.
func (n *notifier) reloading() {
	n.send(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonicMicros()))
}

// send is best effort: a manager that is gone or busy must not stop the gateway.
func (n *notifier) send(state string) {
	if n.conn == nil {
		return
	}
	_ = n.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = n.conn.Write([]byte(state))
}

// interval is how often alive should be called: twice as often as the manager wants. 0 means never.
func (n *notifier) interval() time.Duration { return n.watchdog / 2 }

func (n *notifier) close() {
	if n.conn != nil {
		_ = n.conn.Close()
		n.conn = nil
	}
}
