package wire

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// serve answers one connection and returns the socket's path.
func serve(t *testing.T, answer func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		answer(conn)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return path
}

func TestCall(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "netns"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Larger than a socket's buffer, so that it takes several writes and reads.
	big := `{"x": "` + strings.Repeat("x", 1<<20) + `"}`
	socket := serve(t, func(conn *net.UnixConn) {
		req, got, err := ReadRequest(conn)
		if err != nil {
			t.Error(err)
			return
		}
		defer got.Close()
		a, _ := file.Stat()
		if b, err := got.Stat(); err != nil || !os.SameFile(a, b) {
			t.Errorf("another file came: %v", err)
		}
		if err := WriteResponse(conn, Response{Result: req.Config, Error: types.NewError(7, req.Command, "")}); err != nil {
			t.Error(err)
		}
	})
	resp, err := Call(socket, Request{Command: "ADD", Config: []byte(big)}, file)
	if err != nil || len(resp.Result) < 1<<20 || resp.Error.Code != 7 || resp.Error.Msg != "ADD" {
		t.Errorf("%d bytes, %v, %v", len(resp.Result), resp.Error, err)
	}
}

func TestUnavailable(t *testing.T) {
	_, err := Call(filepath.Join(t.TempDir(), "no-agent"), Request{Config: []byte("{}")}, nil)
	if !IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	_, err = Call(serve(t, func(conn *net.UnixConn) {
		if _, _, err := ReadRequest(conn); err != nil {
			t.Error(err)
		}
	}), Request{Config: []byte("{}")}, nil)
	if !IsUnavailable(err) {
		t.Errorf("the agent that ends without an answer: %v", err)
	}
	if IsUnavailable(errors.New("other")) {
		t.Error("every error is one of availability")
	}
}

func TestRefusesBadRequests(t *testing.T) {
	for name, write := range map[string]func(*net.UnixConn) error{
		"too long": func(c *net.UnixConn) error {
			_, err := c.Write(binary.BigEndian.AppendUint32(nil, MaxMessage+1))
			return err
		},
		"cut off": func(c *net.UnixConn) error {
			_, err := c.Write([]byte{0, 0, 0, 9, '{'})
			return errors.Join(err, c.CloseWrite())
		},
		"not JSON": func(c *net.UnixConn) error {
			_, err := c.Write([]byte{0, 0, 0, 1, '{'})
			return err
		},
		"two descriptors": func(c *net.UnixConn) error {
			_, _, err := c.WriteMsgUnix([]byte{0, 0, 0, 2, '{', '}'}, syscall.UnixRights(1, 2), nil)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			result := make(chan error, 1)
			socket := serve(t, func(conn *net.UnixConn) {
				_, file, err := ReadRequest(conn)
				if file != nil {
					t.Error("a descriptor is left open")
				}
				result <- err
			})
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := write(conn); err != nil {
				t.Fatal(err)
			}
			if err := <-result; err == nil {
				t.Error("accepted")
			}
		})
	}
	if err := WriteResponse(nil, Response{Result: []byte(`"` + strings.Repeat("x", MaxMessage) + `"`)}); err == nil ||
		!strings.Contains(err.Error(), "larger") {
		t.Errorf("%v", err)
	}
}

// TestBacklogFull: an agent with more callers than the kernel queues is temporarily unavailable. It does listen,
// though: a deletion must not be recorded for the next agent.
func TestBacklogFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 10 { // unix(7): connect fails after one more than the backlog
		conn, dialErr := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if dialErr != nil {
			break
		}
		t.Cleanup(func() { conn.Close() })
	}
	_, err = Call(path, Request{Config: []byte("{}")}, nil)
	if !errors.Is(err, syscall.EAGAIN) || !IsUnavailable(err) || NotListening(err) {
		t.Errorf("%v: unavailable %v, not listening %v", err, IsUnavailable(err), NotListening(err))
	}
}

// TestNoDescriptorLeft: an agent without a free file descriptor reports that instead of an invalid request.
func TestNoDescriptorLeft(t *testing.T) {
	result, ready, read := make(chan error, 1), make(chan struct{}), make(chan struct{})
	socket := serve(t, func(conn *net.UnixConn) {
		close(ready)
		<-read
		_, file, err := ReadRequest(conn)
		if file != nil {
			t.Error("a descriptor is left open")
		}
		result <- err
	})
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := WriteRequest(conn, Request{Config: []byte("{}")}, os.Stdin); err != nil {
		t.Fatal(err)
	}
	<-ready
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	close(read)
	err = <-result
	if resetErr := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); resetErr != nil {
		t.Fatal(resetErr)
	}
	if !errors.Is(err, ErrNoDescriptor) {
		t.Errorf("%v", err)
	}
}
