package datagram

import (
	"encoding/binary"
	"errors"
)

// MaxPayload is the longest payload of UDP over IPv4: 65535 bytes without the headers of IP and UDP. IPv6 has 20 bytes
// more, which nobody sends.
const MaxPayload = 65507

const (
	// capsuleDatagram is the type of a capsule that carries a datagram (RFC 9297, section 3.5).
	capsuleDatagram = 0
	// contextUDP is the context ID of UDP payloads (RFC 9298, section 4).
	contextUDP = 0
	// maxCapsule is the longest capsule that is kept until all of it has come. Longer ones carry no datagram, and
	// their bytes are dropped as they come.
	maxCapsule = MaxPayload + 8
)

// errCapsule is why a stream that breaks off inside of a capsule is malformed (RFC 9297, section 3.3).
var errCapsule = errors.New("the stream ends inside of a capsule")

// appendHeader appends what comes before a payload of n bytes.
func appendHeader(b []byte, n int) []byte {
	b = append(b, capsuleDatagram)
	b = appendVarint(b, uint64(n)+1)
	return append(b, contextUDP)
}

// headerLen is the length of that.
func headerLen(n int) int { return 1 + varintLen(uint64(n)+1) + 1 }

// Bounds of the lengths of a variable-length integer (RFC 9000, section 16).
const (
	varint1 = 1<<6 - 1
	varint2 = 1<<14 - 1
	varint4 = 1<<30 - 1
)

func varintLen(v uint64) int {
	switch {
	case v <= varint1:
		return 1
	case v <= varint2:
		return 2
	case v <= varint4:
		return 4
	}
	return 8
}

func appendVarint(b []byte, v uint64) []byte {
	switch varintLen(v) {
	case 1:
		return append(b, byte(v))
	case 2:
		return binary.BigEndian.AppendUint16(b, uint16(v)|1<<14)
	case 4:
		return binary.BigEndian.AppendUint32(b, uint32(v)|2<<30)
	}
	return binary.BigEndian.AppendUint64(b, v|3<<62)
}

// varint reads a variable-length integer; n is its length, 0 where b is too short.
func varint(b []byte) (v uint64, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	n = 1 << (b[0] >> 6)
	if len(b) < n {
		return 0, 0
	}
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, n
}

// decoder takes capsules off a stream of bytes.
type decoder struct {
	part []byte      // the beginning of a capsule whose end has not come
	skip uint64      // bytes of a capsule to come that nobody wants
	room func() bool // asked before more than keptPart is kept of a capsule; nil, or true: it may be
	lost int         // capsules that there was no room for
}

// mayKeep reports whether a capsule of that size may be kept until all of it has come.
func (d *decoder) mayKeep(size uint64) bool {
	if size <= keptPart {
		return true
	}
	if size > maxCapsule {
		return false
	}
	if d.room == nil || d.room() {
		return true
	}
	d.lost++
	return false
}

// next returns the payload of the first datagram in b, and what is behind it. Capsules of other types, and datagrams of
// other contexts, are passed over (RFC 9297, section 3.3; RFC 9298, section 4). ok is false when there is none: b is
// used up then.
func (d *decoder) next(b []byte) (payload, rest []byte, ok bool) {
	for len(b) > 0 {
		if d.skip > 0 {
			n := min(d.skip, uint64(len(b)))
			d.skip -= n
			b = b[n:]
			continue
		}
		if len(d.part) > 0 {
			var whole []byte
			if whole, b = d.complete(b); whole == nil {
				continue // it was too long and is skipped, or b is used up
			}
			if payload, ok = open(whole); ok {
				return payload, b, true
			}
			continue
		}
		size, known := capsuleSize(b)
		switch {
		case known && size <= min(uint64(len(b)), maxCapsule):
			capsule := b[:size]
			b = b[size:]
			if payload, ok = open(capsule); ok {
				return payload, b, true
			}
		case known && !d.mayKeep(size):
			d.skip = size
		default:
			d.part = append(d.part[:0], b...)
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// complete adds b to the capsule that has begun, and returns it where all of it is there now, and what is behind it. The
// capsule is valid until the next call of a method.
func (d *decoder) complete(b []byte) (whole, rest []byte) {
	for {
		size, known := capsuleSize(d.part)
		switch {
		case known && size == uint64(len(d.part)):
			whole = d.part
			d.part = d.part[:0]
			return whole, b
		case known && !d.mayKeep(size):
			d.skip = size - uint64(len(d.part))
			d.part = d.part[:0]
			return nil, b
		case len(b) == 0:
			return nil, nil
		case known:
			n := min(int(size)-len(d.part), len(b))
			d.part = append(d.part, b[:n]...)
			b = b[n:]
		default: // a byte more of its header
			d.part = append(d.part, b[0])
			b = b[1:]
		}
	}
}

// capsuleSize returns the length of the capsule that b begins with, header included; false where b is too short to
// tell.
func capsuleSize(b []byte) (size uint64, known bool) {
	_, n := varint(b)
	if n == 0 {
		return 0, false
	}
	length, m := varint(b[n:])
	if m == 0 {
		return 0, false
	}
	return uint64(n+m) + length, true
}

// open returns the payload of a whole capsule, false where it has none for us.
func open(capsule []byte) (payload []byte, ok bool) {
	kind, n := varint(capsule)
	_, m := varint(capsule[n:])
	if kind != capsuleDatagram {
		return nil, false
	}
	context, k := varint(capsule[n+m:])
	if k == 0 || context != contextUDP {
		return nil, false
	}
	payload = capsule[n+m+k:]
	return payload, len(payload) <= MaxPayload
}

// ended returns an error where the stream ends amid a capsule.
func (d *decoder) ended() error {
	if len(d.part) > 0 || d.skip > 0 {
		return errCapsule
	}
	return nil
}
