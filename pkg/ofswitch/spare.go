package ofswitch

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// A bundle is what a pod's start waits for, and most of its time was the start of ovs-ofctl. That program reads its whole
// standard input before it connects, so one is always started in advance and waits there.

// bundle sends the lines of one bundle.
func (s *Switch) bundle(ctx context.Context, lines []byte) error {
	if s.spare == nil {
		if err := s.prepare(); err != nil {
			return err
		}
	}
	cmd, input := s.spare, s.input
	s.spare, s.input = nil, nil
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it may have ended by itself
	defer stop()
	// When the program in waiting was killed, writing fails, and Wait says why.
	_, writeErr := input.Write(lines)
	_ = input.Close()
	// While the switch works, the next program starts. If it cannot be, the next call says so.
	_ = s.prepare()
	if err := cmd.Wait(); err != nil {
		return failure("bundle", err, cmd.Stderr.(*bytes.Buffer).String())
	}
	if writeErr != nil {
		return fmt.Errorf("ovs-ofctl bundle: %w", writeErr)
	}
	return nil
}

// prepare starts the program for the next bundle. Should the agent die, the end of its standard input makes it commit
// an empty bundle and end.
func (s *Switch) prepare() error {
	cmd := exec.Command("ovs-ofctl", "-O", protocol, "--no-names", "bundle", s.target, "-")
	cmd.Stderr = &bytes.Buffer{}
	input, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("start ovs-ofctl: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start ovs-ofctl: %w", err)
	}
	s.spare, s.input = cmd, input
	return nil
}

// Close ends the program in waiting. It must not be called during Apply.
func (s *Switch) Close() error {
	if s.spare == nil {
		return nil
	}
	cmd := s.spare
	s.spare, s.input = nil, nil
	err := cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	return err
}
