package load

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// MirrorBytes is enough to go through every window and buffer once.
const MirrorBytes = 9<<20 + 17

// mirrorPatience bounds one Mirror.
const mirrorPatience = 20 * time.Second

// Mirror sends n random bytes through addr, ends its half, and wants the same bytes and the end back.
func Mirror(addr string, n int) error {
	c, err := Dial(addr, 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(mirrorPatience)); err != nil {
		return err
	}
	body := make([]byte, n)
	_, _ = rand.Read(body) // never fails
	sent := make(chan error, 1)
	// Ends when all is sent or the deadline passes; received from below.
	go func() {
		_, err := c.Write(append([]byte{AskMirror}, body...))
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(<-sent, err); err != nil {
		return err
	}
	if !bytes.Equal(got, body) {
		return fmt.Errorf("%d bytes came back that are not the %d that were sent", len(got), n)
	}
	return nil
}

// Dial connects to addr from one of many loopback addresses, so that ports do not run out; 0 is the system's
// choice.
func Dial(addr string, source int) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialPatience}
	if source > 0 && manySources {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(source))}
		d.Control = lateBind
	}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil // net sets TCP_NODELAY
}

// dialPatience bounds the connect of Dial.
const dialPatience = 10 * time.Second

// OpenPatience bounds one OpenOnce.
const OpenPatience = 20 * time.Second

// OpenOnce opens a stream from a source address, and closes it after a byte each way.
func OpenOnce(addr string, source int) error {
	c, err := Dial(addr, source)
	if err != nil {
		return err
	}
	defer c.Close()
	return UseOnce(c, time.Now().Add(OpenPatience))
}

// UseOnce asks for an echo on a new stream, and sends a byte there and back.
func UseOnce(c net.Conn, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	return exchange(c, AskEcho, 'x')
}

// SendOne sends another byte there and back.
func SendOne(c net.Conn, deadline time.Time) error {
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	return exchange(c, 'y')
}

// exchange sends bytes and waits for the last of them to come back.
func exchange(c net.Conn, send ...byte) error {
	if _, err := c.Write(send); err != nil {
		return err
	}
	var got [1]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return err
	}
	if want := send[len(send)-1]; got[0] != want {
		return fmt.Errorf("%q came back, not %q", got[0], want)
	}
	return nil
}
