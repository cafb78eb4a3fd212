package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

const emulator = "qemu-system-x86_64"

// needed are the programs that booting a machine takes, and the Debian packages that bring them.
var needed = []struct{ program, debian string }{
	{emulator, "qemu-system-x86"},
	{"depmod", "kmod"},
	{"modprobe", "kmod"},
	{"dpkg", "dpkg"},
}

// InstallPackages installs what is missing.
func InstallPackages(ctx context.Context, out io.Writer) error {
	missing := missingPackages(exec.LookPath)
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("installing %s needs root", strings.Join(missing, " "))
	}
	fmt.Fprintln(out, "Installing Debian packages:", strings.Join(missing, " "))
	if err := aptGet(ctx, "", "update"); err != nil {
		return err
	}
	return aptGet(ctx, "", append([]string{"install", "--yes", "--no-install-recommends"}, missing...)...)
}

func missingPackages(lookPath func(string) (string, error)) []string {
	var missing []string
	for _, n := range needed {
		if _, err := lookPath(n.program); errors.Is(err, exec.ErrNotFound) && !slices.Contains(missing, n.debian) {
			missing = append(missing, n.debian)
		}
	}
	return missing
}

// aptGet runs apt-get in a directory. It shows what apt-get says only when it fails.
func aptGet(ctx context.Context, dir string, args ...string) error {
	// The user that apt-get otherwise downloads as may not write to our directories.
	cmd := exec.CommandContext(ctx, "apt-get", append([]string{"--quiet", "--option=APT::Sandbox::User=root"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, text)
	}
	return nil
}
