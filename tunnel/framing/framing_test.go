package framing

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// script is a connection that reads what a test has written down, and keeps what is written to it.
type script struct {
	net.Conn
	io.Reader
	sent   bytes.Buffer
	closed bool
}

func (s *script) Read(p []byte) (int, error)       { return s.Reader.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.sent.Write(p) }
func (s *script) Close() error                     { s.closed = true; return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func good() error { return nil }

// frame is a frame of a WebSocket, as a client sends it, with a mask of zeros.
func frame(first byte, payload string) string {
	return string([]byte{first, bitMask | byte(len(payload)), 0, 0, 0, 0}) + payload
}

// bytesOf is a text with these bytes.
func bytesOf(b ...byte) string { return string(b) }

func TestWebSocketReads(t *testing.T) {
	const fin = bitFin
	for _, tt := range []struct {
		name, in, want string
		code           int   // of what was wrong
		err            error // where nothing was wrong
	}{
		{"one message", frame(fin|opBinary, "abc") + frame(fin|opClose, ""), "abc", 0, io.EOF},
		{"in fragments", frame(opBinary, "a") + frame(opContinuation, "b") + frame(fin|opContinuation, "c") + frame(fin|opClose, "\x03\xe8"), "abc", 0, io.EOF},
		{"control in the middle", frame(opBinary, "a") + frame(fin|opPing, "p") + frame(fin|opPong, "") + frame(fin|opContinuation, "b") + frame(fin|opClose, ""), "ab", 0, io.EOF},
		{"masked", bytesOf(fin|opBinary, bitMask|5, 1, 2, 3, 4, 'a'^1, 'b'^2, 'c'^3, 'd'^4, 'e'^1) + frame(fin|opClose, ""), "abcde", 0, io.EOF},
		{"no Close", frame(fin|opBinary, "abc"), "abc", 0, io.ErrUnexpectedEOF},
		{"cut in a payload", frame(fin|opBinary, "abc")[:8], "ab", 0, io.ErrUnexpectedEOF},
		{"cut in a head", frame(fin|opBinary, "abc")[:3], "", 0, io.ErrUnexpectedEOF},
		{"nothing behind Close counts", frame(fin|opClose, "") + frame(fin|opBinary, "abc"), "", 0, io.EOF},
		{"unmasked", bytesOf(fin|opBinary, 3) + "abc", "", closeProtocol, nil},
		{"reserved bit 1", frame(fin|0x40|opBinary, "abc"), "", closeProtocol, nil},
		{"reserved bit 3", frame(fin|0x10|opBinary, "abc"), "", closeProtocol, nil},
		{"text", frame(fin|opText, "abc"), "", closeUnsupported, nil},
		{"unknown data", frame(fin|0x3, "abc"), "", closeProtocol, nil},
		{"unknown control", frame(fin|0xb, "abc"), "", closeProtocol, nil},
		{"continuation of nothing", frame(fin|opContinuation, "abc"), "", closeProtocol, nil},
		{"a message in a message", frame(opBinary, "a") + frame(fin|opBinary, "b"), "a", closeProtocol, nil},
		{"text in a message", frame(opBinary, "a") + frame(fin|opText, "b"), "a", closeProtocol, nil},
		{"control in fragments", frame(opPing, "abc"), "", closeProtocol, nil},
		{"long control", bytesOf(fin|opPing, bitMask|126, 0, 126, 0, 0, 0, 0) + strings.Repeat("x", 126), "", closeProtocol, nil},
		{"length not in the shortest way, 2", bytesOf(fin|opBinary, bitMask|126, 0, 3, 0, 0, 0, 0) + "abc", "", closeProtocol, nil},
		{"length not in the shortest way, 8", bytesOf(fin|opBinary, bitMask|127, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0) + "abc", "", closeProtocol, nil},
		{"length with its highest bit", bytesOf(fin|opBinary, bitMask|127, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0), "", closeProtocol, nil},
		{"length of 2^63-1", bytesOf(fin|opBinary, bitMask|127, 0x7f, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0), "", closeTooBig, nil},
		{"length above the limit", bytesOf(fin|opBinary, bitMask|127, 0, 0, 0, 0, 4, 0, 0, 1, 0, 0, 0, 0), "", closeTooBig, nil},
		{"Close with half a code", frame(fin|opClose, "\x03"), "", closeProtocol, nil},
		{"Close with a code that is none", frame(fin|opClose, "\x03\xed"), "", closeProtocol, nil},
		{"Close with code 0", frame(fin|opClose, "\x00\x00"), "", closeProtocol, nil},
		{"Close with code 2999", frame(fin|opClose, "\x0b\xb7"), "", closeProtocol, nil},
		{"Close whose reason is no UTF-8", frame(fin|opClose, "\x03\xe8\xff"), "", closeInvalid, nil},
		{"Close, going away", frame(fin|opClose, "\x03\xe9bye"), "", 1001, nil},
		{"Close, policy", frame(fin|opClose, "\x03\xf0"), "", closePolicy, nil},
		{"endless pings", strings.Repeat(frame(fin|opPing, ""), maxIdleFrames+1), "", closePolicy, nil},
		{"endless empty frames", frame(opBinary, "") + strings.Repeat(frame(opContinuation, ""), maxIdleFrames), "", closePolicy, nil},
		{"garbage", "HTTP/1.1 400 Bad Request\r\n\r\n", "", closeProtocol, nil},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				s := &script{Reader: reader(strings.NewReader(tt.in))}
				w := NewWebSocket(s, false)
				got, err := readAll(w)
				if string(got) != tt.want {
					t.Errorf("read %q, want %q", got, tt.want)
				}
				var wrong *WebSocketError
				if tt.err == nil && (!errors.As(err, &wrong) || wrong.Code != tt.code) || tt.err != nil && !errors.Is(err, tt.err) {
					t.Errorf("end = %v, want %v or code %d", err, tt.err, tt.code)
				}
				if _, again := w.Read(make([]byte, 1)); !errors.Is(again, err) {
					t.Errorf("read again = %v, want %v", again, err)
				}
				if tt.code != 0 {
					want := append([]byte{fin | opClose, 2}, binary.BigEndian.AppendUint16(nil, uint16(tt.code))...)
					if !bytes.HasSuffix(s.sent.Bytes(), want) {
						t.Errorf("sent %x, want it to end with %x", s.sent.Bytes(), want)
					}
				}
			})
		}
	}
}

// readAll is io.ReadAll that returns io.EOF as well.
func readAll(r io.Reader) (got []byte, err error) {
	buf := make([]byte, 7)
	for {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			return got, err
		}
	}
}

func TestWebSocketClientRefusesMasked(t *testing.T) {
	w := NewWebSocket(&script{Reader: strings.NewReader(frame(bitFin|opBinary, "abc"))}, true)
	_, err := w.Read(make([]byte, 3))
	var wrong *WebSocketError
	if !errors.As(err, &wrong) || wrong.Code != closeProtocol {
		t.Errorf("read = %v, want a protocol error", err)
	}
}

func TestWebSocketAnswersPings(t *testing.T) {
	s := &script{Reader: strings.NewReader(frame(bitFin|opPing, "are you there"))}
	_, _ = readAll(NewWebSocket(s, false))
	if got, want := s.sent.String(), bytesOf(bitFin|opPong, 13)+"are you there"; got != want {
		t.Errorf("sent %q, want %q", got, want)
	}
}

// A deadline that passes in the middle of a head loses nothing.
func TestReadGoesOnAfterADeadline(t *testing.T) {
	in := frame(bitFin|opBinary, "abc") + frame(bitFin|opClose, "")
	for cut := range len(in) {
		s := &script{Reader: io.MultiReader(strings.NewReader(in[:cut]), &late{}, strings.NewReader(in[cut:]))}
		w := NewWebSocket(s, false)
		got, err := readAll(w)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("cut at %d: read = %v, want a deadline", cut, err)
		}
		rest, err := readAll(w)
		if text := string(got) + string(rest); text != "abc" || !errors.Is(err, io.EOF) {
			t.Errorf("cut at %d: read %q, %v, want abc and the end", cut, text, err)
		}
	}
}

// late is a reader whose deadline has passed, once.
type late struct{ told bool }

func (l *late) Read([]byte) (int, error) {
	if l.told {
		return 0, io.EOF
	}
	l.told = true
	return 0, os.ErrDeadlineExceeded
}

// message is one of gRPC.
func message(flag byte, length uint32, body string) string {
	return string([]byte{flag}) + string(binary.BigEndian.AppendUint32(nil, length)) + body
}

func TestGRPCReads(t *testing.T) {
	whole := string(appendMessage(nil, []byte("abc")))
	broken := errors.New("status 14")
	for _, tt := range []struct {
		name, in, want string
		atEnd          error
		err            error // nil: a *GRPCError
	}{
		{"messages", whole + whole, "abcabc", nil, io.EOF},
		{"empty messages", message(0, 0, "") + message(0, 2, "\x0a\x00") + whole, "abc", nil, io.EOF},
		{"a bad end", whole, "abc", broken, broken},
		{"cut in a head", whole[:3], "", nil, io.ErrUnexpectedEOF},
		{"cut in a field", whole[:6], "", nil, io.ErrUnexpectedEOF},
		{"cut in a payload", string(appendMessage(nil, []byte("abcdefgh")))[:12], "abcde", nil, io.ErrUnexpectedEOF},
		{"compressed", message(1, 5, "\x0a\x03abc"), "", nil, nil},
		{"a flag that is none", message(2, 5, "\x0a\x03abc"), "", nil, nil},
		{"length of 2^32-1", message(0, 1<<32-1, "\x0a\x03abc"), "", nil, nil},
		{"length above the limit", message(0, maxMessageBytes+1, "\x0a\x03abc"), "", nil, nil},
		{"another field", message(0, 5, "\x12\x03abc"), "", nil, nil},
		{"another type", message(0, 2, "\x08\x03"), "", nil, nil},
		{"field shorter than the message", message(0, 6, "\x0a\x03abcd"), "", nil, nil},
		{"field longer than the message", message(0, 5, "\x0a\x04abc"), "", nil, nil},
		{"two fields", message(0, 6, "\x0a\x01a\x0a\x01b"), "", nil, nil},
		{"endless length", message(0, 12, "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "", nil, nil},
		{"length without an end", message(0, 2, "\x0a\x83"), "", nil, nil},
		{"only a tag", message(0, 1, "\x0a"), "", nil, nil},
		{"endless empty messages", strings.Repeat(message(0, 0, ""), maxIdleFrames+1), "", nil, nil},
		{"garbage", "<html><body>502 Bad Gateway</body></html>", "", nil, nil},
		{"garbage behind", whole + "xyzxyzxyz", "abc", nil, nil},
	} {
		for how, reader := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				g := NewGRPC(&script{Reader: reader(strings.NewReader(tt.in))}, good, func() error { return tt.atEnd })
				got, err := readAll(g)
				if string(got) != tt.want {
					t.Errorf("read %q, want %q", got, tt.want)
				}
				var wrong *GRPCError
				if tt.err == nil && !errors.As(err, &wrong) || tt.err != nil && !errors.Is(err, tt.err) {
					t.Errorf("end = %v, want %v", err, tt.err)
				}
			})
		}
	}
}

// What one side writes the other reads, whatever the pieces.
func TestRoundTrip(t *testing.T) {
	body := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(body)
	pieces := []int{1, 5, 124, 125, 126, 127, 65535, 65536, 65537, 200_000, len(body)}
	for name, pair := range map[string]func(w, r *script) (io.WriteCloser, io.Reader){
		"WebSocket, to the server": func(w, r *script) (io.WriteCloser, io.Reader) { return NewWebSocket(w, true), NewWebSocket(r, false) },
		"WebSocket, to the client": func(w, r *script) (io.WriteCloser, io.Reader) { return NewWebSocket(w, false), NewWebSocket(r, true) },
		"gRPC": func(w, r *script) (io.WriteCloser, io.Reader) {
			return NewGRPC(w, good, good), NewGRPC(r, good, good)
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := new(script), new(script)
			w, r := pair(from, to)
			var sent []byte
			for i, at := 0, 0; at < len(body); i++ {
				n := min(pieces[i%len(pieces)], len(body)-at)
				if m, err := w.Write(body[at : at+n]); m != n || err != nil {
					t.Fatalf("Write(%d bytes) = %d, %v", n, m, err)
				}
				sent, at = append(sent, body[at:at+n]...), at+n
			}
			if err := w.Close(); err != nil || !from.closed {
				t.Errorf("Close = %v, closed %v", err, from.closed)
			}
			to.Reader = &from.sent
			got, err := io.ReadAll(r)
			if !bytes.Equal(got, sent) || err != nil {
				t.Errorf("read %d bytes, %v, want the %d that were sent", len(got), err, len(sent))
			}
		})
	}
}

func TestWriteAfterCloseWrite(t *testing.T) {
	s := new(script)
	w := NewWebSocket(s, false)
	if err := errors.Join(w.CloseWrite(), w.CloseWrite()); err != nil {
		t.Error(err)
	}
	if _, err := w.Write([]byte("x")); !errors.Is(err, errEnded) {
		t.Errorf("Write after CloseWrite = %v", err)
	}
	if got, want := s.sent.String(), bytesOf(bitFin|opClose, 2, 3, 0xe8); got != want {
		t.Errorf("sent %x, want one Close, %x", got, want)
	}
}

func FuzzWebSocket(f *testing.F) {
	f.Add([]byte(frame(bitFin|opBinary, "abc")+frame(bitFin|opPing, "p")+frame(bitFin|opClose, "\x03\xe8")), false)
	f.Add([]byte{bitFin | opBinary, 126, 1, 0}, true)
	f.Fuzz(func(t *testing.T, in []byte, client bool) {
		s := &script{Reader: bytes.NewReader(in)}
		got, err := readAll(NewWebSocket(s, client))
		if err == nil || len(got) > len(in) {
			t.Errorf("read %d of %d bytes, %v", len(got), len(in), err)
		}
	})
}

func FuzzGRPC(f *testing.F) {
	f.Add(appendMessage(nil, []byte("abc")))
	f.Add([]byte(message(0, 6, "\x0a\x01a\x0a\x01b")))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := readAll(NewGRPC(&script{Reader: bytes.NewReader(in)}, good, good))
		if err == nil || len(got) > len(in) {
			t.Errorf("read %d of %d bytes, %v", len(got), len(in), err)
		}
	})
}

func BenchmarkWebSocketWrite(b *testing.B) {
	for name, client := range map[string]bool{"masked": true, "plain": false} {
		b.Run(name, func(b *testing.B) {
			s := new(script)
			w := NewWebSocket(s, client)
			p := make([]byte, chunkBytes)
			b.SetBytes(chunkBytes)
			b.ReportAllocs()
			for b.Loop() {
				s.sent.Reset()
				_, _ = w.Write(p)
			}
		})
	}
}
