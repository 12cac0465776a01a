package h2

import "encoding/binary"

// frameType is the type octet of a frame (RFC 9113, section 6).
type frameType uint8

const (
	frameData         frameType = 0x0
	frameHeaders      frameType = 0x1
	framePriority     frameType = 0x2
	frameRSTStream    frameType = 0x3
	frameSettings     frameType = 0x4
	framePushPromise  frameType = 0x5
	framePing         frameType = 0x6
	frameGoAway       frameType = 0x7
	frameWindowUpdate frameType = 0x8
	frameContinuation frameType = 0x9
)

// Flags of RFC 9113, section 6. END_STREAM and ACK share a bit.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	frameHeaderLen = 9         // RFC 9113, section 4.1
	minMaxFrame    = 1 << 14   // RFC 9113, section 4.2: the initial and least SETTINGS_MAX_FRAME_SIZE
	maxMaxFrame    = 1<<24 - 1 // and the greatest
	maxStreamID    = 1<<31 - 1
	maxWindow      = 1<<31 - 1 // RFC 9113, section 6.9.1
	initialWindow  = 65535     // RFC 9113, section 6.9.2
)

// clientPreface is what a client sends first (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// frameHeader is the fixed header of a frame (RFC 9113, section 4.1). The reserved bit is dropped.
type frameHeader struct {
	length   uint32
	kind     frameType
	flags    uint8
	streamID uint32
}

func (f frameHeader) has(flag uint8) bool { return f.flags&flag != 0 }

// parseFrameHeader reads the first 9 bytes of b.
func parseFrameHeader(b []byte) frameHeader {
	_ = b[8]
	return frameHeader{
		length:   uint32(b[0])<<16 | uint32(b[1])<<8 | uint32(b[2]),
		kind:     frameType(b[3]),
		flags:    b[4],
		streamID: binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

// putFrameHeader writes the header of a frame with n payload bytes to the first 9 bytes of b.
func putFrameHeader(b []byte, n int, kind frameType, flags uint8, id uint32) {
	_ = b[8]
	b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n)
	b[3], b[4] = byte(kind), flags
	binary.BigEndian.PutUint32(b[5:], id)
}

func appendFrameHeader(b []byte, n int, kind frameType, flags uint8, id uint32) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), flags)
	return binary.BigEndian.AppendUint32(b, id)
}

func appendRSTStream(b []byte, id uint32, code ErrCode) []byte {
	b = appendFrameHeader(b, 4, frameRSTStream, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendWindowUpdate(b []byte, id uint32, n uint32) []byte {
	b = appendFrameHeader(b, 4, frameWindowUpdate, 0, id)
	return binary.BigEndian.AppendUint32(b, n)
}

func appendPing(b []byte, ack bool, data [8]byte) []byte {
	var flags uint8
	if ack {
		flags = flagAck
	}
	b = appendFrameHeader(b, 8, framePing, flags, 0)
	return append(b, data[:]...)
}

func appendGoAway(b []byte, lastID uint32, code ErrCode, debug string) []byte {
	b = appendFrameHeader(b, 8+len(debug), frameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, lastID)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, debug...)
}

// appendHeaderBlock writes a complete header block as HEADERS or PUSH_PROMISE and as many CONTINUATION
// frames as maxFrame needs (RFC 9113, section 4.3). prefix is what stands before the first fragment:
// the promised stream id of PUSH_PROMISE, else nothing.
func appendHeaderBlock(b []byte, kind frameType, flags uint8, id uint32, prefix, block []byte, maxFrame int) []byte {
	first := block[:min(len(block), maxFrame-len(prefix))]
	block = block[len(first):]
	if len(block) == 0 {
		flags |= flagEndHeaders
	}
	b = appendFrameHeader(b, len(prefix)+len(first), kind, flags, id)
	b = append(append(b, prefix...), first...)
	for len(block) > 0 {
		part := block[:min(len(block), maxFrame)]
		block = block[len(part):]
		flags = 0
		if len(block) == 0 {
			flags = flagEndHeaders
		}
		b = appendFrameHeader(b, len(part), frameContinuation, flags, id)
		b = append(b, part...)
	}
	return b
}

// unpad returns the payload of a padded frame without its padding (RFC 9113, section 6.1).
func unpad(h frameHeader, p []byte) ([]byte, *ConnError) {
	if !h.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, connError(FrameSizeError, "padded frame without pad length")
	}
	pad := int(p[0])
	if pad >= len(p) {
		return nil, connError(ProtocolError, "padding as long as the payload or longer")
	}
	return p[1 : len(p)-pad], nil
}
