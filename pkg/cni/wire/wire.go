// Package wire is the protocol between weft-cni and the agent: one request with at most one file descriptor, and one
// response, over a Unix stream socket. Both programs import it, so it has few imports: each pod's start waits for the
// plugin's.
//
// A message is a length (four bytes, big endian) and that many bytes of JSON. The pod's network namespace is a
// descriptor (SCM_RIGHTS) sent with the request's length. The package keeps no state.
package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// DefaultSocket is the agent's socket unless the network configuration names another.
const DefaultSocket = "/run/weft/cni.sock"

// MaxMessage bounds a message, in bytes. The largest one is a GC request, about 120 bytes per attachment.
const MaxMessage = 4 << 20

// Deadline bounds the whole call. It is below the two minutes that the kubelet allows the runtime, and above the
// agent's own timeouts, so that normally the agent reports the error.
const Deadline = 60 * time.Second

// Request is the runtime's call: CNI's environment variables and the unchanged network configuration.
type Request struct {
	Command     string          `json:"command"`
	ContainerID string          `json:"containerID,omitempty"`
	Netns       string          `json:"netns,omitempty"`
	IfName      string          `json:"ifName,omitempty"`
	Args        string          `json:"args,omitempty"`
	Config      json.RawMessage `json:"config"`
}

// Response is a result in the version of the configuration, or an error, or empty for commands without a result.
type Response struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  *types.Error    `json:"error,omitempty"`
}

// Call sends a request to the agent and waits for its response, at most Deadline. netns may be nil. When IsUnavailable
// holds for the error, the agent has not begun or not finished the request.
func Call(socket string, req Request, netns *os.File) (Response, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return Response{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Deadline)); err != nil {
		return Response{}, fmt.Errorf("set a deadline: %w", err)
	}
	if err := WriteRequest(conn, req, netns); err != nil {
		return Response{}, err
	}
	var resp Response
	if err := read(conn, &resp); err != nil {
		return Response{}, fmt.Errorf("read the response: %w", err)
	}
	return resp, nil
}

// IsUnavailable reports whether a Call failed because the agent does not run, stopped meanwhile, took too long, or has
// as many waiting connections as the kernel queues (EAGAIN, see unix(7)).
func IsUnavailable(err error) bool {
	unavailable := []error{
		syscall.EAGAIN, syscall.ENOENT, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE,
		io.EOF, io.ErrUnexpectedEOF, os.ErrDeadlineExceeded,
	}
	for _, e := range unavailable {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// WriteRequest sends a request; the descriptor goes with its first bytes.
func WriteRequest(conn *net.UnixConn, req Request, netns *os.File) error {
	head, body, err := encode(req)
	if err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	var rights []byte
	if netns != nil {
		rights = syscall.UnixRights(int(netns.Fd()))
	}
	if _, _, err := conn.WriteMsgUnix(head, rights, nil); err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	if _, err := conn.Write(body); err != nil {
		return fmt.Errorf("write the request: %w", err)
	}
	return nil
}

// ErrNoDescriptor is ReadRequest's error when a descriptor arrived and the process has no free one.
var ErrNoDescriptor = errors.New("the file descriptor that came with it could not be received: too many open files")

// ReadRequest is the counterpart of WriteRequest. The file is nil when no descriptor came; the caller closes it. It
// blocks until the whole request has arrived, and allocates memory for received bytes only, never for an announced
// length.
func ReadRequest(conn *net.UnixConn) (req Request, netns *os.File, err error) {
	head := make([]byte, 4)
	// Room for one descriptor, and for a second one because of alignment: the kernel closes descriptors that do not fit
	// and sets MSG_CTRUNC.
	oob := make([]byte, syscall.CmsgSpace(4))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head, oob)
	if err != nil {
		return Request{}, nil, fmt.Errorf("read the request: %w", err)
	}
	files, err := receivedFiles(oob[:oobn])
	switch {
	case err != nil:
	case flags&syscall.MSG_CTRUNC != 0 && len(files) == 0:
		err = ErrNoDescriptor
	case len(files) > 1 || flags&syscall.MSG_CTRUNC != 0:
		err = errors.New("it came with more than one file descriptor")
	}
	defer func() {
		if err != nil {
			netns = nil
			for _, f := range files {
				f.Close()
			}
		}
	}()
	if err != nil {
		return Request{}, nil, fmt.Errorf("read the request: %w", err)
	}
	if len(files) == 1 {
		netns = files[0]
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return Request{}, netns, fmt.Errorf("read the request: %w", err)
	}
	if err := readBody(conn, head, &req); err != nil {
		return Request{}, netns, fmt.Errorf("read the request: %w", err)
	}
	return req, netns, nil
}

// WriteResponse sends a response.
func WriteResponse(w io.Writer, resp Response) error {
	head, body, err := encode(resp)
	if err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	if _, err := w.Write(append(head, body...)); err != nil {
		return fmt.Errorf("write the response: %w", err)
	}
	return nil
}

func receivedFiles(oob []byte) (files []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "netns"))
		}
	}
	return files, nil
}

func encode(v any) (head, body []byte, err error) {
	body, err = json.Marshal(v)
	if err != nil {
		return nil, nil, err
	}
	if len(body) > MaxMessage {
		return nil, nil, fmt.Errorf("message of %d bytes is larger than %d", len(body), MaxMessage)
	}
	return binary.BigEndian.AppendUint32(nil, uint32(len(body))), body, nil
}

func read(r io.Reader, v any) error {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	return readBody(r, head, v)
}

func readBody(r io.Reader, head []byte, v any) error {
	n := binary.BigEndian.Uint32(head)
	if n > MaxMessage {
		return fmt.Errorf("message of %d bytes is larger than %d", n, MaxMessage)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, int64(n)); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // io.EOF is reserved for a client that only checks whether the agent listens
		}
		return err
	}
	return json.Unmarshal(body.Bytes(), v)
}
