//go:build linux

// Package tap reads copies of the packets that network devices send and receive, through a packet socket (packet(7)).
// Nothing that it does changes a packet or a device. A Tap belongs to one goroutine, but for Close.
package tap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/pkg/capture"
)

// buffer is how many bytes of packets may wait, as the kernel counts them.
const buffer = 4 << 20

// Tap is an open packet socket.
type Tap struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte
	oob  [256]byte
	lost uint64
}

// Open reads the packets that a program passes: at the device of an index, or at all for 0. It needs the capability
// NET_RAW. No other packet is read, also none that came before the program was there.
func Open(program []bpf.RawInstruction, index, snapLen int) (*Tap, error) {
	// Without a protocol, the socket receives nothing until it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket (needs the capability NET_RAW): %w", err)
	}
	if err := setUp(fd, program, index); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	t := &Tap{file: os.NewFile(uintptr(fd), "packet socket"), buf: make([]byte, snapLen)}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("read a packet socket: %w", err), t.file.Close())
	}
	return t, nil
}

func setUp(fd int, program []bpf.RawInstruction, index int) error {
	filter := make([]unix.SockFilter, len(program))
	for i, p := range program {
		filter[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
		return fmt.Errorf("give the packet socket a filter of %d instructions: %w", len(filter), err)
	}
	err := errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
	)
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil { // without NET_ADMIN, up to a sysctl
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer))
	}
	if err != nil {
		return fmt.Errorf("set up the packet socket: %w", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return fmt.Errorf("bind the packet socket to device %d: %w", index, err)
	}
	return nil
}

// Read implements capture.Reader.
func (t *Tap) Read(ctx context.Context, wait bool) (f capture.Frame, ok bool, err error) {
	if wait {
		// A deadline in the past ends a reading that waits.
		if err := t.file.SetReadDeadline(time.Time{}); err != nil {
			return f, false, fmt.Errorf("read a packet: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { _ = t.file.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
	}
	var failed error
	err = t.raw.Read(func(fd uintptr) bool {
		f, failed = t.receive(int(fd))
		return !errors.Is(failed, unix.EAGAIN) || !wait
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), err == nil && errors.Is(failed, unix.EAGAIN):
		return f, false, nil
	case errors.Is(failed, unix.ENETDOWN):
		return f, false, capture.ErrGone
	}
	if err = errors.Join(err, failed); err != nil {
		return f, false, fmt.Errorf("read a packet: %w", err)
	}
	return f, true, nil
}

func (t *Tap) receive(fd int) (f capture.Frame, err error) {
	n, oobn, _, from, err := unix.Recvmsg(fd, t.buf, t.oob[:], unix.MSG_DONTWAIT)
	if err != nil {
		return f, err
	}
	f = capture.Frame{Data: t.buf[:n], Length: n, Time: time.Now()}
	if at, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Link, f.Sent = at.Ifindex, at.Pkttype == unix.PACKET_OUTGOING
	}
	messages, err := unix.ParseSocketControlMessage(t.oob[:oobn])
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) == 16:
			// A timespec of a 64-bit system, as Weft's are.
			f.Time = time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		case m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 8:
			f.Length = int(binary.NativeEndian.Uint32(m.Data[4:])) // tpacket_auxdata.tp_len
		}
	}
	return f, err
}

// Lost implements capture.Reader.
func (t *Tap) Lost() (uint64, error) {
	var stats *unix.TpacketStats
	var failed error
	err := t.raw.Control(func(fd uintptr) {
		stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS) // and begins again at 0
	})
	if err = errors.Join(err, failed); err != nil {
		return t.lost, fmt.Errorf("read the losses of a packet socket: %w", err)
	}
	t.lost += uint64(stats.Drops)
	return t.lost, nil
}

// Close ends the reading.
func (t *Tap) Close() error { return t.file.Close() }
