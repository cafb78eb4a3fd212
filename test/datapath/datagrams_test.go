//go:build integration

package datapath

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// A question is a datagram of any size: its number, the size of the answer that it wants, and bytes that follow from
// both. An answer that is wanted to be as short as it can be is the digest of the question.
const questionHeader = 12

// question makes a datagram of a size.
func question(number uint64, size, answer int) []byte {
	b := make([]byte, size)
	binary.BigEndian.PutUint64(b, number)
	binary.BigEndian.PutUint32(b[8:], uint32(answer))
	fill(b[questionHeader:], number)
	return b
}

// fill gives bytes that follow from a number, so that none can be missing, or be another's, unseen.
func fill(b []byte, number uint64) {
	x := number*2862933555777941757 + 3037000493
	for i := range b {
		x = x*6364136223846793005 + 1442695040888963407
		b[i] = byte(x >> 56)
	}
}

func answerTo(q []byte) []byte {
	n := binary.BigEndian.Uint32(q[8:])
	if n == 0 {
		sum := sha256.Sum256(q)
		return sum[:]
	}
	b := make([]byte, n)
	fill(b, ^binary.BigEndian.Uint64(q))
	return b
}

// whole tells whether a question arrived as it was sent. Frames that a test makes by hand have marks among their bytes.
func whole(q []byte) bool {
	return len(q) >= questionHeader &&
		bytes.Equal(q, question(binary.BigEndian.Uint64(q), len(q), int(binary.BigEndian.Uint32(q[8:]))))
}

// answerer answers questions, and remembers which came.
type answerer struct {
	conn *net.UDPConn

	mu   sync.Mutex
	came map[uint64]int // by number; those that are whole
	bad  []string
}

// answers listens in the client's pod.
func (c *client) answers(t *testing.T, ports ...uint16) *answerer {
	t.Helper()
	a := &answerer{came: map[uint64]int{}}
	for _, port := range ports {
		if err := c.ns.Do(func() (err error) {
			a.conn, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(port)})
			return err
		}); err != nil {
			t.Fatalf("listen in %s: %v", c.name, err)
		}
		conn := a.conn
		if err := deepBuffer(conn); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		go a.answer(conn)
	}
	return a
}

func (a *answerer) answer(conn *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		ok := whole(buf[:n])
		a.mu.Lock()
		if ok {
			a.came[binary.BigEndian.Uint64(buf)]++
		} else {
			a.bad = append(a.bad, fmt.Sprintf("%d bytes from %s: %.20x…", n, from, buf[:n]))
		}
		a.mu.Unlock()
		if ok {
			_, _ = conn.WriteToUDPAddrPort(answerTo(buf[:n]), from) // one that is lost is missed where it was asked for
		}
	}
}

// count is how often a question came whole.
func (a *answerer) count(number uint64) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.came[number]
}

// asker is a socket that asks one address.
type asker struct {
	conn     net.Conn
	buf      []byte
	patience time.Duration // how late an answer may be; a busy machine needs seconds
}

func (c *client) asker(to netip.AddrPort) (*asker, error) {
	a := &asker{buf: make([]byte, 1<<16), patience: testenv.Patience(5 * time.Second)}
	return a, c.ns.Do(func() (err error) { a.conn, err = net.Dial("udp", to.String()); return err })
}

// ask sends one question and waits for its answer.
func (a *asker) ask(number uint64, size, answer int) error {
	q := question(number, size, answer)
	if _, err := a.conn.Write(q); err != nil {
		return err
	}
	if err := a.conn.SetReadDeadline(time.Now().Add(a.patience)); err != nil {
		return err
	}
	for want := answerTo(q); ; {
		n, err := a.conn.Read(a.buf)
		if err != nil {
			return err
		}
		if n == len(want) && bytes.Equal(a.buf[:n], want) {
			return nil
		}
		if n != len(want) {
			return fmt.Errorf("an answer of %d bytes, want %d", n, len(want))
		}
		// It may be a late one to an earlier question.
	}
}

// piece is a part of a datagram, from one byte of its IP payload up to another.
type piece struct {
	from, to int
	last     bool
}

// cut gives the pieces of a payload, each of at most size bytes, which have to be a multiple of 8.
func cut(length, size int) (pieces []piece) {
	for from := 0; from < length; from += size {
		pieces = append(pieces, piece{from, min(from+size, length), from+size >= length})
	}
	return pieces
}

// fragments are frames with pieces of one UDP datagram, as a pod would send them.
func fragments(mac wire.MAC, src, dst netip.AddrPort, number uint32, payload []byte,
	pieces ...piece) (frames [][]byte) {
	header := 14 + 20
	if src.Addr().Is6() {
		header = 14 + 40
	}
	datagram := wire.UDPFrame(router, mac, src, dst, payload)
	datagram = datagram[:header+8+len(payload)] // without padding
	for _, p := range pieces {
		part := datagram[header+p.from : header+p.to]
		frame := bytes.Clone(datagram[:header])
		if src.Addr().Is4() {
			ip := frame[14:]
			binary.BigEndian.PutUint16(ip[2:], uint16(20+len(part)))
			binary.BigEndian.PutUint16(ip[4:], uint16(number))
			offset := uint16(p.from / 8)
			if !p.last {
				offset |= 0x2000 // more fragments
			}
			binary.BigEndian.PutUint16(ip[6:], offset)
			binary.BigEndian.PutUint16(ip[10:], 0)
			binary.BigEndian.PutUint16(ip[10:], ^fold(ip))
		} else {
			ip := frame[14:]
			binary.BigEndian.PutUint16(ip[4:], uint16(8+len(part)))
			ip[6] = unix.IPPROTO_FRAGMENT
			extension := []byte{unix.IPPROTO_UDP, 0}
			offset := uint16(p.from) // in units of 8, 3 bits up
			if !p.last {
				offset |= 1
			}
			extension = binary.BigEndian.AppendUint16(extension, offset)
			frame = append(frame, binary.BigEndian.AppendUint32(extension, number)...)
		}
		frame = append(frame, part...)
		frames = append(frames, append(frame, make([]byte, max(0, 60-len(frame)))...))
	}
	return frames
}

// fold is the sum of RFC 1071.
func fold(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
