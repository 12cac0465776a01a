package h2test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing/synctest"
	"time"
)

// WantFrame returns the next frame of that stream, or of the connection for id 0, which must be of type t.
// Frames of other streams stay for later calls. The expectation says in words what is wanted and why; it
// begins the message when something else comes or nothing does.
func (p *Peer) WantFrame(t FrameType, id uint32, expectation string) Frame {
	p.t.Helper()
	return p.wantNext(id, expectation, t.String(), func(f Frame) bool { return f.Type == t })
}

// WantAny returns the next frame of that stream, or of the connection for id 0, that is not passed over.
func (p *Peer) WantAny(id uint32, expectation string) Frame {
	p.t.Helper()
	return p.wantNext(id, expectation, "a frame", func(f Frame) bool { return !p.passedOver(f) })
}

// WantHeaders wants HEADERS on the stream, with each name of want having that value; a value "" wants the
// name to be absent.
func (p *Peer) WantHeaders(id uint32, expectation string, want map[string]string) Frame {
	p.t.Helper()
	f := p.WantFrame(Headers, id, expectation)
	for name, value := range want {
		if got := f.Value(name); got != value {
			p.t.Fatalf("%s: field %q is %q, want %q: %v", expectation, name, got, value, f)
		}
	}
	return f
}

// WantData wants exactly the bytes of want on the stream, in as many DATA frames as it likes, and with end
// END_STREAM after them, without end not.
func (p *Peer) WantData(id uint32, want []byte, end bool, expectation string) {
	p.t.Helper()
	var got []byte
	for ended := false; len(got) < len(want) || ended != end; {
		f := p.wantNext(id, expectation, fmt.Sprintf("DATA (%d of %d bytes came)", len(got), len(want)),
			func(f Frame) bool { return f.Type == Data })
		got = append(got, f.Data()...)
		if ended = f.EndStream(); ended && (!end || len(got) < len(want)) {
			p.t.Fatalf("%s: stream %d ended after %d bytes, want %d bytes, end %v", expectation, id, len(got),
				len(want), end)
		}
	}
	if !bytes.Equal(got, want) {
		p.t.Fatalf("%s: stream %d carried %.80q (%d bytes), want %.80q (%d bytes)", expectation, id, got, len(got),
			want, len(want))
	}
}

// WantRST wants RST_STREAM on the stream with one of the codes.
func (p *Peer) WantRST(id uint32, expectation string, codes ...ErrCode) Frame {
	p.t.Helper()
	f := p.WantFrame(RSTStream, id, expectation)
	if !slices.Contains(codes, f.ErrCode()) {
		p.t.Fatalf("%s: RST_STREAM of stream %d with %v, want %v", expectation, id, f.ErrCode(), codes)
	}
	return f
}

// WantGoAway wants GOAWAY with one of the codes.
func (p *Peer) WantGoAway(expectation string, codes ...ErrCode) Frame {
	p.t.Helper()
	f := p.WantFrame(GoAway, 0, expectation)
	if !slices.Contains(codes, f.ErrCode()) {
		p.t.Fatalf("%s: %v, want code %v", expectation, f, codes)
	}
	return f
}

// WantConnError wants GOAWAY with one of the codes and then the end of the connection: "After sending the
// GOAWAY frame for an error condition, the endpoint MUST close the TCP connection" (section 5.4.1).
func (p *Peer) WantConnError(expectation string, codes ...ErrCode) Frame {
	p.t.Helper()
	f := p.WantGoAway(expectation, codes...)
	p.WantClosed(expectation)
	return f
}

// WantClosed wants the connection to be closed by the tested end, whatever it sends before.
func (p *Peer) WantClosed(expectation string) {
	p.t.Helper()
	deadline := time.Now().Add(p.timeout())
	for {
		if err := p.pump(deadline); errors.Is(err, os.ErrDeadlineExceeded) {
			p.t.Fatalf("%s: the connection is still open after %v%s", expectation, p.timeout(), p.left())
		} else if err != nil {
			return
		}
	}
}

// WantIdle wants that nothing more comes: it waits until every goroutine of the bubble waits, so it must be
// called in a testing/synctest bubble. Frames that are passed over anyway may come.
func (p *Peer) WantIdle(expectation string) {
	p.t.Helper()
	for {
		synctest.Wait()
		// A moment of synthetic time passes only when nothing is there to be read.
		err := p.pump(time.Now().Add(time.Nanosecond))
		if f, ok := p.leftover(); ok {
			p.t.Fatalf("%s: want nothing, got %v", expectation, f)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			p.t.Fatalf("%s: want silence on a live connection: %s", expectation, p.why(err))
		}
	}
}

// WantIdleFor wants that nothing comes for that long, PING and the other types that are passed over apart.
func (p *Peer) WantIdleFor(d time.Duration, expectation string) {
	p.t.Helper()
	for deadline := time.Now().Add(d); ; {
		err := p.pump(deadline)
		if f, ok := p.leftover(); ok {
			p.t.Fatalf("%s: want nothing, got %v", expectation, f)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		} else if err != nil {
			p.t.Fatalf("%s: want silence on a live connection: %s", expectation, p.why(err))
		}
	}
}

// WantPreface wants the client connection preface: the 24 octets, then SETTINGS.
func (p *Peer) WantPreface() Frame {
	p.t.Helper()
	const expectation = "the client connection preface comes first (section 3.4)"
	if err := p.fill(len(Preface), time.Now().Add(p.timeout())); err != nil {
		p.t.Fatalf("%s: %s", expectation, p.why(err))
	}
	if got := string(p.in[:len(Preface)]); got != Preface {
		p.t.Fatalf("%s: got %q", expectation, got)
	}
	p.in = p.in[len(Preface):]
	return p.WantSettings("the 24 octets are followed by SETTINGS (section 3.4)")
}

// WantSettings wants SETTINGS that are no acknowledgement.
func (p *Peer) WantSettings(expectation string) Frame {
	p.t.Helper()
	return p.wantNext(0, expectation, "SETTINGS", func(f Frame) bool { return f.Type == Settings && !f.IsAck() })
}

// WantSettingsAck wants the acknowledgement of SETTINGS.
func (p *Peer) WantSettingsAck(expectation string) Frame {
	p.t.Helper()
	return p.wantNext(0, expectation, "SETTINGS ACK", func(f Frame) bool { return f.Type == Settings && f.IsAck() })
}

// WantPing wants a PING that is no answer.
func (p *Peer) WantPing(expectation string) Frame {
	p.t.Helper()
	return p.wantNext(0, expectation, "PING", func(f Frame) bool { return f.Type == Ping && !f.IsAck() })
}

// WantPingAck wants the answer to a PING with that payload.
func (p *Peer) WantPingAck(data [8]byte, expectation string) Frame {
	p.t.Helper()
	return p.wantNext(0, expectation, fmt.Sprintf("PING ACK %x", data), func(f Frame) bool {
		return f.Type == Ping && f.IsAck() && bytes.Equal(f.Payload, data[:])
	})
}

// Take reads for as long as frames come without a wait, and returns and forgets all frames that were read.
// It must be called in a testing/synctest bubble.
func (p *Peer) Take() []Frame {
	for {
		synctest.Wait()
		if err := p.pump(time.Now().Add(time.Nanosecond)); err != nil {
			taken := p.queue
			p.queue = nil
			return taken
		}
	}
}

// wantNext takes the next frame of the stream that is not passed over or that match asks for.
func (p *Peer) wantNext(id uint32, expectation, what string, match func(Frame) bool) Frame {
	p.t.Helper()
	deadline := time.Now().Add(p.timeout())
	for i := 0; ; i++ {
		for i >= len(p.queue) {
			if err := p.pump(deadline); err != nil {
				p.t.Fatalf("%s: want %s on stream %d: %s", expectation, what, id, p.why(err))
			}
		}
		f := p.queue[i]
		if f.StreamID != id {
			continue
		}
		if match(f) {
			p.queue = slices.Delete(p.queue, i, i+1)
			return f
		}
		if !p.passedOver(f) {
			p.t.Fatalf("%s: want %s on stream %d, got %v", expectation, what, id, f)
		}
	}
}

// passedOver says if Want methods pass over the frame when they were not asked for it.
func (p *Peer) passedOver(f Frame) bool {
	switch f.Type {
	case Settings, Ping, WindowUpdate, Priority:
		return true
	}
	return f.Type > Continuation || p.ignored[f.Type]
}

// leftover returns the first queued frame that no Want has asked for and that is not passed over.
func (p *Peer) leftover() (Frame, bool) {
	i := slices.IndexFunc(p.queue, func(f Frame) bool { return !p.passedOver(f) })
	if i < 0 {
		return Frame{}, false
	}
	return p.queue[i], true
}

// why explains why no frame came, for messages.
func (p *Peer) why(err error) string {
	s := fmt.Sprintf("the connection ended (%v)", err)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s = fmt.Sprintf("nothing came in %v", p.timeout())
	}
	if p.writeErr != nil {
		s += fmt.Sprintf("; writing had failed before (%v)", p.writeErr)
	}
	return s + p.left()
}

// left lists the last frames that were read and not asked for.
func (p *Peer) left() string {
	var lines []string
	for _, f := range p.queue[max(0, len(p.queue)-8):] {
		lines = append(lines, f.String())
	}
	if lines == nil {
		return ""
	}
	return "; not asked for: " + strings.Join(lines, ", ")
}
