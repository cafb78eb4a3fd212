package ofswitch

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
)

// A bundle is what a pod's start waits for, and most of its time was the start of ovs-ofctl. That program reads its whole
// standard input before it connects, so one is always started in advance and waits there.

// waiting is a program that waits for the lines of a bundle.
type waiting struct {
	cmd    *exec.Cmd
	input  io.WriteCloser
	stderr bytes.Buffer
}

// bundle sends the lines of one bundle.
func (s *Switch) bundle(ctx context.Context, lines []byte) error {
	if s.spare == nil {
		if err := s.prepare(); err != nil {
			return err
		}
	}
	p := s.spare
	s.spare = nil
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() }) // it may have ended by itself
	defer stop()
	// When the program in waiting was killed, writing fails, and Wait says why.
	_, writeErr := p.input.Write(lines)
	_ = p.input.Close()
	// While the switch works, the next program starts. If it cannot be, the next call says so.
	_ = s.prepare()
	if err := p.cmd.Wait(); err != nil {
		return failure("bundle", err, p.stderr.String())
	}
	if writeErr != nil {
		return fmt.Errorf("ovs-ofctl bundle: %w", writeErr)
	}
	return nil
}

// prepare starts the program for the next bundle. Should the agent die, the end of its standard input makes it commit
// an empty bundle and end.
func (s *Switch) prepare() error {
	p := &waiting{cmd: ofctl(context.Background(), "bundle", s.target, "-")}
	p.cmd.Stderr = &p.stderr
	var err error
	if p.input, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("start ovs-ofctl: %w", err)
	}
	s.spare = p
	return nil
}

// Close ends the program in waiting. It must not be called during Apply.
func (s *Switch) Close() error {
	if s.spare == nil {
		return nil
	}
	p := s.spare
	s.spare = nil
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // it was killed
	return err
}
