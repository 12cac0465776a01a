package framing

import (
	"bufio"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
	"unicode/utf8"
)

// webSocketGUID is what makes an accept of a key (RFC 6455, section 1.3).
const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

// WebSocketKey returns a new Sec-WebSocket-Key (RFC 6455, section 4.1).
func WebSocketKey() string {
	key := make([]byte, 16)
	_, _ = rand.Read(key) // never fails
	return base64.StdEncoding.EncodeToString(key)
}

// WebSocketAccept returns the Sec-WebSocket-Accept that answers a key (RFC 6455, section 4.2.2).
func WebSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + webSocketGUID))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// The opcodes (RFC 6455, section 5.2).
const (
	opContinuation = 0x0
	opText         = 0x1
	opBinary       = 0x2
	opClose        = 0x8
	opPing         = 0x9
	opPong         = 0xa
)

// Bits of the first two bytes of a frame.
const (
	bitFin  = 0x80
	bitsRSV = 0x70
	bitMask = 0x80
)

// The status codes that are sent (RFC 6455, section 7.4.1).
const (
	closeNormal      = 1000
	closeProtocol    = 1002
	closeUnsupported = 1003
	closeInvalid     = 1007
	closePolicy      = 1008
	closeTooBig      = 1009
)

const (
	// maxControlBytes is the greatest payload of a control frame (RFC 6455, section 5.5).
	maxControlBytes = 125
	// maxFrameBytes is the greatest payload of one frame that is taken. It is passed on as it comes, so this only keeps
	// a peer to frames that somebody could have meant.
	maxFrameBytes = 64 << 20
	// maxIdleFrames is how many frames may follow each other without a byte for the reader.
	maxIdleFrames = 100
	// chunkBytes is how much of a Write one frame holds: four records of TLS.
	chunkBytes = 64 << 10
	// maxHeadBytes is the longest head of a frame, or of a message of gRPC, that is written here.
	maxHeadBytes = 14
	// readBytes is the buffer for what comes: heads of frames, while payload goes past it.
	readBytes = 4 << 10
	// closeTimeout bounds the sending of a Close frame.
	closeTimeout = time.Second
)

// WebSocketError is what is wrong with what the peer has sent on a WebSocket, or why it has closed it.
type WebSocketError struct {
	// Code is the status code (RFC 6455, section 7.4.1) that was sent, or came with Close.
	Code int
	// Reason says what was wrong, or is the peer's own word, quoted.
	Reason string
}

// Error returns the code and the reason.
func (e *WebSocketError) Error() string {
	return fmt.Sprintf("WebSocket closed with %d: %s", e.Code, e.Reason)
}

// WebSocket carries bytes in binary messages. Read may run beside Write, Close and CloseWrite. Its end is a Close frame:
// after CloseWrite the peer reads io.EOF, and what it sends until it has closed as well is still read.
type WebSocket struct {
	net.Conn
	client bool

	// owned by who reads
	r      *bufio.Reader
	left   int64 // payload of the frame that is still to come
	mask   [4]byte
	maskAt int
	open   bool // the message goes on in further frames
	idle   int  // frames without payload for the reader, in a row
	rerr   error

	wmu    sync.Mutex
	closed bool // a Close frame was sent; guarded by wmu
}

// NewWebSocket returns bytes in messages on nc, whose handshake is over. client tells that this side masks, and the other
// does not (RFC 6455, section 5.1; RFC 8441 changes nothing about it).
func NewWebSocket(nc net.Conn, client bool) *WebSocket {
	return &WebSocket{Conn: nc, client: client, r: bufio.NewReaderSize(nc, readBytes)}
}

// Read reads payload. It returns io.EOF after the peer's Close with status 1000 or none, and else a *WebSocketError, or the
// error of the connection below; one that ends without a Close frame is io.ErrUnexpectedEOF.
func (w *WebSocket) Read(p []byte) (int, error) {
	if w.rerr != nil {
		return 0, w.rerr
	}
	for w.left == 0 {
		if err := w.nextFrame(); err != nil {
			return 0, w.fail(err)
		}
	}
	if int64(len(p)) > w.left {
		p = p[:w.left]
	}
	n, err := w.r.Read(p)
	if !w.client {
		w.maskAt = maskBytes(w.mask, w.maskAt, p[:n])
	}
	if w.left -= int64(n); n > 0 {
		return n, nil
	}
	return 0, w.fail(noEnd(err))
}

// fail keeps why nothing more is read; a deadline that has passed is no reason.
func (w *WebSocket) fail(err error) error {
	if isTimeout(err) {
		return err
	}
	var wrong *WebSocketError
	if errors.As(err, &wrong) {
		w.sendClose(wrong.Code)
	}
	w.rerr = err
	return err
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

// noEnd is err, where the end of what is below is no end of what it carries.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// nextFrame reads the head of the next frame. Control frames are dealt with; of others the payload follows.
func (w *WebSocket) nextFrame() error {
	// The head is looked at before it is taken, so that a deadline which passes in the middle of it loses nothing.
	head, err := w.r.Peek(2)
	if err != nil {
		return noEnd(err)
	}
	size := 2 + lengthBytes(head[1]&^bitMask)
	masked := head[1]&bitMask != 0
	if masked {
		size += len(w.mask)
	}
	if head, err = w.r.Peek(size); err != nil {
		return noEnd(err)
	}
	fin, op := head[0]&bitFin != 0, head[0]&0x0f
	length, problem := frameLength(head)
	switch {
	case head[0]&bitsRSV != 0:
		problem = "reserved bits are set, and no extension was agreed on"
	case masked && w.client:
		problem = "a frame of the server is masked"
	case !masked && !w.client:
		problem = "a frame of the client is not masked"
	}
	if problem != "" {
		return &WebSocketError{closeProtocol, problem}
	}
	if masked {
		copy(w.mask[:], head[size-len(w.mask):])
	}
	if op&0x8 != 0 {
		if !fin || length > maxControlBytes {
			return &WebSocketError{closeProtocol, "a control frame is fragmented, or longer than 125 bytes"}
		}
		return w.control(op, size, int(length))
	}
	if err := w.data(op, fin, length); err != nil {
		return err
	}
	_, _ = w.r.Discard(size) // it was peeked at
	w.left, w.maskAt = length, 0
	return w.quiet(length == 0)
}

// quiet counts frames that bring the reader nothing.
func (w *WebSocket) quiet(nothing bool) error {
	if !nothing {
		w.idle = 0
		return nil
	}
	if w.idle++; w.idle > maxIdleFrames {
		return &WebSocketError{closePolicy, "too many frames without a byte for us"}
	}
	return nil
}

// data checks what stands in the head of a data frame.
func (w *WebSocket) data(op byte, fin bool, length int64) error {
	switch {
	case op == opContinuation && !w.open:
		return &WebSocketError{closeProtocol, "a frame continues a message that was not begun"}
	case op != opContinuation && w.open:
		return &WebSocketError{closeProtocol, "a message begins before the one before has ended"}
	case op == opText:
		return &WebSocketError{closeUnsupported, "a text message; a tunnel is of binary ones"}
	case op != opContinuation && op != opBinary:
		return &WebSocketError{closeProtocol, "a frame of an unknown type"}
	case length > maxFrameBytes:
		return &WebSocketError{closeTooBig, "a frame is longer than 64 MiB"}
	}
	w.open = !fin
	return nil
}

// control deals with a control frame, whose payload follows after skip bytes.
func (w *WebSocket) control(op byte, skip, length int) error {
	frame, err := w.r.Peek(skip + length)
	if err != nil {
		return noEnd(err)
	}
	var buf [maxControlBytes]byte
	payload := buf[:copy(buf[:], frame[skip:])]
	_, _ = w.r.Discard(skip + length) // it was peeked at
	if !w.client {
		maskBytes(w.mask, 0, payload)
	}
	switch op {
	case opClose:
		return closeReason(payload)
	case opPing:
		if err := w.writeFrame(opPong, payload); err != nil && !errors.Is(err, errEnded) {
			return err
		}
	case opPong:
	default:
		return &WebSocketError{closeProtocol, "a control frame of an unknown type"}
	}
	return w.quiet(true)
}

// closeReason is what the payload of a Close frame says: io.EOF, or why it was closed.
func closeReason(payload []byte) error {
	if len(payload) == 0 {
		return io.EOF
	}
	if len(payload) == 1 {
		return &WebSocketError{closeProtocol, "a Close frame with half a status code"}
	}
	code, reason := int(binary.BigEndian.Uint16(payload)), payload[2:]
	switch {
	case code < 1000 || code >= 1004 && code <= 1006 || code > 1014 && code < 3000 || code > 4999:
		return &WebSocketError{closeProtocol, fmt.Sprintf("a Close frame with status code %d, which is none", code)}
	case !utf8.Valid(reason):
		return &WebSocketError{closeInvalid, "a Close frame whose reason is not UTF-8"}
	case code == closeNormal:
		return io.EOF
	}
	return &WebSocketError{code, fmt.Sprintf("by the peer, %q", reason)}
}

// lengthBytes is how many bytes of extended length follow the short one.
func lengthBytes(short byte) int {
	switch short {
	case 126:
		return 2
	case 127:
		return 8
	}
	return 0
}

// frameLength reads the length in the head of a frame. RFC 6455, section 5.2: "the minimal number of bytes MUST be used to
// encode the length".
func frameLength(head []byte) (n int64, problem string) {
	switch short := head[1] &^ bitMask; short {
	case 126:
		if n = int64(binary.BigEndian.Uint16(head[2:])); n < 126 {
			problem = "the length of a frame is not written in the shortest way"
		}
	case 127:
		wide := binary.BigEndian.Uint64(head[2:])
		switch n = int64(wide & (1<<63 - 1)); {
		case wide>>63 != 0:
			problem = "the length of a frame has its highest bit set"
		case wide < 1<<16:
			problem = "the length of a frame is not written in the shortest way"
		}
	default:
		n = int64(short)
	}
	return n, problem
}

// errEnded is what Write returns after CloseWrite.
var errEnded = errors.New("write after CloseWrite")

// Write sends p in binary messages.
func (w *WebSocket) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		chunk := p[:min(len(p), chunkBytes)]
		if err := w.writeFrame(opBinary, chunk); err != nil {
			return n, err
		}
		n, p = n+len(chunk), p[len(chunk):]
	}
	return n, nil
}

// frames are buffers for a head and one chunk.
var frames = sync.Pool{New: func() any { return new([maxHeadBytes + chunkBytes]byte) }}

// writeFrame sends one frame, at most chunkBytes long.
func (w *WebSocket) writeFrame(op byte, payload []byte) error {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.closed {
		return errEnded
	}
	w.closed = op == opClose
	buf := frames.Get().(*[maxHeadBytes + chunkBytes]byte)
	defer frames.Put(buf)
	_, err := w.Conn.Write(w.appendFrame(buf[:0], op, payload))
	return err
}

func (w *WebSocket) appendFrame(b []byte, op byte, payload []byte) []byte {
	var masked byte
	if w.client {
		masked = bitMask
	}
	b = append(b, bitFin|op)
	switch n := len(payload); {
	case n < 126:
		b = append(b, masked|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	}
	if !w.client {
		return append(b, payload...)
	}
	var mask [4]byte
	_, _ = rand.Read(mask[:]) // never fails
	b = append(b, mask[:]...)
	at := len(b)
	b = append(b, payload...)
	maskBytes(mask, 0, b[at:])
	return b
}

// sendClose sends a Close frame with a status code, once. It does not wait for a Write under way.
func (w *WebSocket) sendClose(code int) {
	if !w.wmu.TryLock() {
		return
	}
	closed := w.closed
	w.wmu.Unlock()
	if closed {
		return
	}
	_ = w.SetWriteDeadline(time.Now().Add(closeTimeout))
	_ = w.writeFrame(opClose, binary.BigEndian.AppendUint16(nil, uint16(code))) // a peer that does not take it sees the end
}

// CloseWrite sends Close. Reading goes on until the peer has done the same.
func (w *WebSocket) CloseWrite() error {
	err := w.writeFrame(opClose, binary.BigEndian.AppendUint16(nil, closeNormal))
	if errors.Is(err, errEnded) {
		return nil
	}
	return err
}

// Close sends Close where that was not done, and closes the connection.
func (w *WebSocket) Close() error {
	w.sendClose(closeNormal)
	return w.Conn.Close()
}

// maskBytes masks b, whose first byte is the one at the given place after the mask began, and returns the place after b.
func maskBytes(mask [4]byte, at int, b []byte) int {
	for len(b) > 0 && at&3 != 0 {
		b[0] ^= mask[at&3]
		at, b = at+1, b[1:]
	}
	word := uint64(binary.LittleEndian.Uint32(mask[:]))
	word |= word << 32
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^word)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= mask[i&3]
	}
	return (at + len(b)) & 3
}
