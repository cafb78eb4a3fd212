package ofswitch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// ovs-ofctl commits the lines that it has read when its standard input ends, also because the agent was killed. So it
// is given all lines of a bundle or none: through a pipe that the kernel fills at once (see fill), or as a file that
// was complete before the program started. A program that outlives the agent then commits a whole bundle; the next
// agent's watch on the switch tells of it, or its first reading of the switch finds it.

// waiting is a program that waits for the lines of a bundle. A pod's start waits for its bundle, which takes 2 ms, and
// starting ovs-ofctl takes 5 ms more. The program reads its whole standard input before it connects, so one is always
// started in advance.
type waiting struct {
	cmd    *exec.Cmd
	input  *os.File // a pipe
	room   int      // of the pipe
	stderr bytes.Buffer
}

// bundle sends the lines of one bundle, with the program in waiting where they fit into its pipe.
func (s *Switch) bundle(ctx context.Context, lines []byte) error {
	if s.spare == nil {
		if err := s.prepare(); err != nil {
			return err
		}
	}
	if len(lines) > s.spare.room {
		return s.bundleFile(ctx, lines)
	}
	p := s.spare
	s.spare = nil
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() }) // it may have ended by itself
	defer stop()
	// When the program in waiting was killed, this fails, and Wait says why.
	fillErr := fill(p.input, lines)
	_ = p.input.Close()
	// While the switch works, the next program starts. If it cannot be, the next call says so.
	_ = s.prepare()
	if err := p.cmd.Wait(); err != nil {
		return failure("bundle", err, p.stderr.String())
	}
	if fillErr != nil {
		return fmt.Errorf("ovs-ofctl bundle: %w", fillErr)
	}
	return nil
}

// fill puts lines into an empty pipe that has room for them, all or none, whenever this process is killed. A write
// would stop between two pages when memory is short; tee(2) only links pages that another pipe holds, all of them while
// it has both pipes locked (link_pipe in Linux's fs/splice.c).
func fill(pipe *os.File, lines []byte) (err error) {
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close(), to.Close()) }()
	if room, err := pipeRoom(to); err != nil || room < len(lines) {
		return fmt.Errorf("a pipe takes %d bytes, not %d: %w", room, len(lines), err)
	}
	if _, err := to.Write(lines); err != nil {
		return err
	}
	n, err := unix.Tee(int(from.Fd()), int(pipe.Fd()), len(lines), 0)
	if err == nil && n != int64(len(lines)) {
		err = io.ErrShortWrite
	}
	return err
}

// pipeRoom is how many bytes an empty pipe takes. Users that have many pipes get smaller ones (pipe(7)).
func pipeRoom(pipe *os.File) (int, error) {
	n, err := unix.FcntlInt(pipe.Fd(), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the size of a pipe: %w", err)
	}
	return n, nil
}

// prepare starts the program for the next bundle. Should the agent die, the end of its standard input makes it commit
// an empty bundle and end.
func (s *Switch) prepare() error {
	out, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start ovs-ofctl: %w", err)
	}
	p := &waiting{cmd: ofctl(context.Background(), "bundle", s.target, "-"), input: in}
	p.cmd.Stdin, p.cmd.Stderr = out, &p.stderr
	p.room, err = pipeRoom(in)
	if err == nil {
		err = p.cmd.Start()
	}
	_ = out.Close() // the program has its own
	if err != nil {
		return errors.Join(fmt.Errorf("start ovs-ofctl: %w", err), in.Close())
	}
	s.spare = p
	return nil
}

// bundleFile sends the lines of one bundle of any size. It may be called from any goroutine.
func (s *Switch) bundleFile(ctx context.Context, lines []byte) error {
	file, err := sealedFile(lines)
	if err != nil {
		return fmt.Errorf("ovs-ofctl bundle: %w", err)
	}
	cmd := ofctl(ctx, "bundle", s.target, "-")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = file, &stderr
	err = cmd.Run()
	_ = file.Close() // nothing of it is to be kept
	if err != nil {
		return failure("bundle", err, stderr.String())
	}
	return nil
}

// sealedFile gives a file in memory that holds this and cannot be changed.
func sealedFile(content []byte) (_ *os.File, err error) {
	const name, flags = "weft-bundle", unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// Linux 6.3 can be told to refuse files without MFD_NOEXEC_SEAL (vm.memfd_noexec); older ones do not know the flag.
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	if _, err := file.Write(content); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	_, err = file.Seek(0, io.SeekStart) // the program shares the position
	return file, err
}

// Close ends the program in waiting. It must not be called during Apply.
func (s *Switch) Close() error {
	if s.spare == nil {
		return nil
	}
	p := s.spare
	s.spare = nil
	err := errors.Join(p.cmd.Process.Kill(), p.input.Close())
	_ = p.cmd.Wait() // it was killed
	return err
}
