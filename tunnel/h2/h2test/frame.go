package h2test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// FrameType is the type octet of a frame (RFC 9113, section 6).
type FrameType uint8

// The frame types of RFC 9113, section 6.
const (
	Data         FrameType = 0x0
	Headers      FrameType = 0x1
	Priority     FrameType = 0x2
	RSTStream    FrameType = 0x3
	Settings     FrameType = 0x4
	PushPromise  FrameType = 0x5
	Ping         FrameType = 0x6
	GoAway       FrameType = 0x7
	WindowUpdate FrameType = 0x8
	Continuation FrameType = 0x9
)

// String is the name in RFC 9113, or "type 0x…".
func (t FrameType) String() string {
	names := []string{"DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY",
		"WINDOW_UPDATE", "CONTINUATION"}
	if int(t) < len(names) {
		return names[t]
	}
	return fmt.Sprintf("type %#x", uint8(t))
}

// Flags is the flags octet of a frame.
type Flags uint8

// The flags of RFC 9113, section 6. Ack is for SETTINGS and PING.
const (
	Ack          Flags = 0x1
	EndStream    Flags = 0x1
	EndHeaders   Flags = 0x4
	Padded       Flags = 0x8
	WithPriority Flags = 0x20
)

// ErrCode is an error code (RFC 9113, section 7).
type ErrCode uint32

// The error codes of RFC 9113, section 7.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

// String is the name in RFC 9113, or the number.
func (c ErrCode) String() string {
	names := []string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
		"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
		"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}
	if int64(c) < int64(len(names)) {
		return names[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// SettingID names a setting (RFC 9113, section 6.5.2).
type SettingID uint16

// The settings of RFC 9113, section 6.5.2, and RFC 8441, section 3.
const (
	HeaderTableSize       SettingID = 0x1
	EnablePush            SettingID = 0x2
	MaxConcurrentStreams  SettingID = 0x3
	InitialWindowSize     SettingID = 0x4
	MaxFrameSize          SettingID = 0x5
	MaxHeaderListSize     SettingID = 0x6
	EnableConnectProtocol SettingID = 0x8
)

// Setting is one parameter of a SETTINGS frame.
type Setting struct {
	ID    SettingID
	Value uint32
}

// Field is a field line; pseudo-header fields have names that begin with a colon.
type Field = hpack.HeaderField

// Fields makes field lines of names and values in turn.
func Fields(namesAndValues ...string) []Field {
	if len(namesAndValues)%2 != 0 {
		panic("BUG: Fields wants names and values in turn")
	}
	fields := make([]Field, 0, len(namesAndValues)/2)
	for i := 0; i < len(namesAndValues); i += 2 {
		fields = append(fields, Field{Name: namesAndValues[i], Value: namesAndValues[i+1]})
	}
	return fields
}

// Request is the header section of an ordinary request to https://test.example, followed by more names
// and values.
func Request(method, path string, more ...string) []Field {
	head := Fields(":method", method, ":scheme", "https", ":authority", "test.example", ":path", path)
	return append(head, Fields(more...)...)
}

// Connect is the header section of a CONNECT request (RFC 9113, section 8.5), followed by more names and
// values.
func Connect(authority string, more ...string) []Field {
	return append(Fields(":method", "CONNECT", ":authority", authority), Fields(more...)...)
}

// Response is the header section of a response, followed by more names and values.
func Response(status string, more ...string) []Field {
	return append(Fields(":status", status), Fields(more...)...)
}

// Frame is a frame as it was received. A HEADERS or PUSH_PROMISE frame stands for its CONTINUATION frames
// too: Block is the whole field block, Fields what it decodes to.
type Frame struct {
	Type          FrameType
	Flags         Flags
	StreamID      uint32
	Payload       []byte // of the first frame, padding and all
	Block         []byte
	Fields        []Field
	Continuations int // how many CONTINUATION frames followed
}

// String describes the frame in one line, for messages.
func (f Frame) String() string {
	s := fmt.Sprintf("%v stream %d flags %#x length %d", f.Type, f.StreamID, uint8(f.Flags), len(f.Payload))
	switch f.Type {
	case Headers, PushPromise:
		var lines []string
		for _, hf := range f.Fields {
			lines = append(lines, hf.Name+"="+hf.Value)
		}
		s += " {" + strings.Join(lines, " ") + "}"
	case RSTStream:
		s += " " + f.ErrCode().String()
	case GoAway:
		s += fmt.Sprintf(" %v last stream %d %q", f.ErrCode(), f.LastStreamID(), f.Debug())
	case WindowUpdate:
		s += fmt.Sprintf(" +%d", f.Increment())
	case Data:
		s += fmt.Sprintf(" %.40q", f.Data())
	}
	return s
}

// EndStream says if the frame ends its stream in its sender's direction.
func (f Frame) EndStream() bool {
	return (f.Type == Data || f.Type == Headers) && f.Flags&EndStream != 0
}

// IsAck says if the frame is a SETTINGS or PING acknowledgement.
func (f Frame) IsAck() bool { return (f.Type == Settings || f.Type == Ping) && f.Flags&Ack != 0 }

// Data is the payload of a DATA frame without its padding.
func (f Frame) Data() []byte {
	data, _ := f.unpad()
	return data
}

// ErrCode is the code of a RST_STREAM or GOAWAY frame.
func (f Frame) ErrCode() ErrCode {
	switch {
	case f.Type == RSTStream && len(f.Payload) == 4:
		return ErrCode(binary.BigEndian.Uint32(f.Payload))
	case f.Type == GoAway && len(f.Payload) >= 8:
		return ErrCode(binary.BigEndian.Uint32(f.Payload[4:]))
	}
	return ^ErrCode(0)
}

// LastStreamID is the last stream identifier of a GOAWAY frame.
func (f Frame) LastStreamID() uint32 {
	if f.Type != GoAway || len(f.Payload) < 8 {
		return 0
	}
	return binary.BigEndian.Uint32(f.Payload) & 0x7fffffff
}

// Debug is the debug data of a GOAWAY frame.
func (f Frame) Debug() string {
	if f.Type != GoAway || len(f.Payload) < 8 {
		return ""
	}
	return string(f.Payload[8:])
}

// Increment is the increment of a WINDOW_UPDATE frame.
func (f Frame) Increment() uint32 {
	if f.Type != WindowUpdate || len(f.Payload) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(f.Payload) & 0x7fffffff
}

// Settings lists the parameters of a SETTINGS frame in order.
func (f Frame) Settings() []Setting {
	var settings []Setting
	for p := f.Payload; f.Type == Settings && len(p) >= 6; p = p[6:] {
		settings = append(settings, Setting{SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])})
	}
	return settings
}

// Promised is the promised stream identifier of a PUSH_PROMISE frame.
func (f Frame) Promised() uint32 {
	rest, ok := f.unpad()
	if f.Type != PushPromise || !ok || len(rest) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(rest) & 0x7fffffff
}

// Value is the value of the first field called name, or "".
func (f Frame) Value(name string) string {
	i := slices.IndexFunc(f.Fields, func(hf Field) bool { return hf.Name == name })
	if i < 0 {
		return ""
	}
	return f.Fields[i].Value
}

// unpad returns the payload without pad length and padding; ok is false if the padding is too long.
func (f Frame) unpad() (rest []byte, ok bool) {
	if f.Flags&Padded == 0 || (f.Type != Data && f.Type != Headers && f.Type != PushPromise) {
		return f.Payload, true
	}
	if len(f.Payload) == 0 || int(f.Payload[0]) >= len(f.Payload) {
		return nil, false
	}
	return f.Payload[1 : len(f.Payload)-int(f.Payload[0])], true
}

// fragment is the part of the field block that the frame itself carries.
func (f Frame) fragment() (block []byte, ok bool) {
	if block, ok = f.unpad(); !ok {
		return nil, false
	}
	skip := 0
	if f.Type == PushPromise {
		skip = 4
	} else if f.Type == Headers && f.Flags&WithPriority != 0 {
		skip = 5
	}
	if len(block) < skip {
		return nil, false
	}
	return block[skip:], true
}

// AppendFrame appends a frame with this payload to b, whatever the RFC says of it.
func AppendFrame(b []byte, t FrameType, flags Flags, id uint32, payload []byte) []byte {
	b = append(b, byte(len(payload)>>16), byte(len(payload)>>8), byte(len(payload)), byte(t), byte(flags))
	b = binary.BigEndian.AppendUint32(b, id)
	return append(b, payload...)
}
