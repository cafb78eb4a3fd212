package dnslearn

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// direction is one direction of a TCP connection.
type direction struct{ from, to netip.AddrPort }

// stream puts one direction of a TCP connection together. It begins with the SYN: what is seen from the middle on gives
// no messages.
type stream struct {
	next  uint32            // the sequence number of the first byte that is missing
	data  []byte            // what came before it and was not read yet
	later map[uint32][]byte // segments behind a gap, by their sequence number
	size  int               // the bytes of data and later
	seen  time.Time
	// wanted says that a message had addresses of names that are wanted: the segment may come again, and is then to be
	// held as well.
	wanted bool
}

// Bounds of what is kept for TCP: 16 MB at most.
const (
	// MaxStreams is how many directions of connections are put together at once.
	MaxStreams    = 1024
	maxStreamSize = 16 << 10 // some times what 100 addresses take
	streamIdle    = 30 * time.Second
)

// streams are those of all connections. When there are too many, the one that was silent for the longest time goes.
type streams map[direction]*stream

// segment adds a segment and returns the messages that it completes (RFC 1035, section 4.2.2).
func (s streams) segment(p packet, now time.Time) [][]byte {
	key := direction{p.from, p.to}
	if p.syn {
		s.expire(now)
		s[key] = &stream{next: p.seq + 1, later: map[uint32][]byte{}, seen: now}
		return nil
	}
	one := s[key]
	if one == nil {
		return nil
	}
	one.seen = now
	one.add(p.seq, p.payload)
	messages, ok := one.messages()
	if !ok {
		delete(s, key)
	}
	return messages
}

// add puts a segment in its place. Bytes that came before are left out.
func (s *stream) add(seq uint32, payload []byte) {
	if len(payload) == 0 {
		return
	}
	if _, known := s.later[seq]; !known {
		s.later[seq] = append([]byte(nil), payload...)
		s.size += len(payload)
	}
	for found := true; found; {
		found = false
		for at, data := range s.later {
			behind := int32(s.next - at) // bytes that came before
			if behind < 0 {
				continue
			}
			delete(s.later, at)
			s.size -= len(data)
			if int(behind) < len(data) {
				data = data[behind:]
				s.data, s.next, s.size, found = append(s.data, data...), s.next+uint32(len(data)), s.size+len(data), true
			}
		}
	}
}

// messages takes out the messages that are complete. It is not ok when too much is kept.
func (s *stream) messages() (list [][]byte, ok bool) {
	for len(s.data) >= 2 {
		size := 2 + int(binary.BigEndian.Uint16(s.data))
		if len(s.data) < size {
			break
		}
		list = append(list, s.data[2:size:size])
		s.data, s.size = s.data[size:], s.size-size
	}
	return list, s.size <= maxStreamSize
}

// expire makes room for one.
func (s streams) expire(now time.Time) {
	var oldest direction
	for key, one := range s {
		if now.Sub(one.seen) > streamIdle {
			delete(s, key)
		} else if first := s[oldest]; first == nil || one.seen.Before(first.seen) {
			oldest = key
		}
	}
	if len(s) >= MaxStreams {
		delete(s, oldest)
	}
}
