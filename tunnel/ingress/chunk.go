package ingress

const (
	// maxChunkExt bounds the extensions of one chunk, which nobody uses, and maxChunkExts those of a body.
	maxChunkExt  = 256
	maxChunkExts = 8 << 10
	// maxTrailerBytes bounds the fields behind a body.
	maxTrailerBytes = 8 << 10
	// maxChunkDigits is how many digits the size of a chunk may have: more than any chunk needs, less than overflows.
	maxChunkDigits = 15
)

// chunkState is what a chunkScanner expects.
type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer     // the first byte of a line
	chunkTrailerLine // the rest of it
	chunkTrailerLF
	chunkLastLF
	chunkDone
)

// chunkScanner finds the end of a body in chunks (RFC 9112, section 7.1), and refuses what another reader could find another end
// in: other line ends than CRLF, sizes with signs or spaces, folded trailers.
type chunkScanner struct {
	state           chunkState
	data            int64 // bytes of the chunk that are to come; while the size is read, the size so far
	digits          int
	ext, exts, tail int // bytes of extensions, of all extensions, of trailers
}

// scan goes over b up to the end of the body and returns how much of b that is.
func (c *chunkScanner) scan(b []byte) (n int, err error) {
	for n < len(b) && c.state != chunkDone {
		if c.state == chunkData {
			m := min(int64(len(b)-n), c.data)
			n += int(m)
			if c.data -= m; c.data == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if problem := c.step(b[n]); problem != "" {
			return n, malformed(problem)
		}
		n++
	}
	return n, nil
}

// passed notes n bytes of the chunk's data that were not scanned.
func (c *chunkScanner) passed(n int64) {
	if c.data -= n; c.data == 0 {
		c.state = chunkDataCR
	}
}

// step goes over one byte that is no data and says what is wrong with it.
func (c *chunkScanner) step(b byte) string {
	const lineEnd = "a line of a body in chunks does not end in CRLF"
	switch c.state {
	case chunkSize:
		return c.stepSize(b)
	case chunkExt:
		c.ext++
		c.exts++
		switch {
		case b == '\r':
			c.state = chunkSizeLF
		case c.ext > maxChunkExt || c.exts > maxChunkExts:
			return "the extensions of a chunk are too long"
		case b < ' ' && b != '\t' || b == 0x7f:
			return lineEnd
		}
	case chunkSizeLF:
		if b != '\n' {
			return lineEnd
		}
		c.ext, c.digits = 0, 0
		if c.state = chunkData; c.data == 0 {
			c.state = chunkTrailer
		}
	case chunkDataCR, chunkDataLF:
		if b != "\r\n"[c.state-chunkDataCR] {
			return "a chunk is longer than its size"
		}
		if c.state++; c.state > chunkDataLF {
			c.state = chunkSize
		}
	default:
		return c.stepTrailer(b)
	}
	return ""
}

func (c *chunkScanner) stepSize(b byte) string {
	digit := int64(-1)
	switch {
	case b >= '0' && b <= '9':
		digit = int64(b - '0')
	case b >= 'a' && b <= 'f':
		digit = int64(b-'a') + 10
	case b >= 'A' && b <= 'F':
		digit = int64(b-'A') + 10
	case c.digits == 0:
		return "a chunk has no size"
	case b == ';':
		c.state = chunkExt
		return ""
	case b == '\r':
		c.state = chunkSizeLF
		return ""
	default:
		return "the size of a chunk is no hexadecimal number"
	}
	if c.digits++; c.digits > maxChunkDigits {
		return "the size of a chunk is too long"
	}
	if c.digits == 1 {
		c.data = 0
	}
	c.data = c.data<<4 | digit
	return ""
}

func (c *chunkScanner) stepTrailer(b byte) string {
	if c.tail++; c.tail > maxTrailerBytes {
		return "the trailers are too long"
	}
	switch c.state {
	case chunkTrailer:
		switch {
		case b == '\r':
			c.state = chunkLastLF
		case !isTokenByte(b):
			return "a trailer is no field"
		default:
			c.state = chunkTrailerLine
		}
	case chunkTrailerLine:
		if b == '\r' {
			c.state = chunkTrailerLF
		} else if b < ' ' && b != '\t' || b == 0x7f {
			return "a trailer holds a control character"
		}
	case chunkTrailerLF:
		if b != '\n' {
			return "a trailer holds a CR"
		}
		c.state = chunkTrailer
	case chunkLastLF:
		if b != '\n' {
			return "a body in chunks does not end in CRLF"
		}
		c.state = chunkDone
	}
	return ""
}
