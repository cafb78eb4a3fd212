// Command image builds Weft's container image as a tar, without Docker, a registry or root:
//
//	go run -C test ./image -o ../dist/weft-image.tar -tag weft.io/weft:v0.2.0
//
// The image has two layers: the programs of Open vSwitch and nftables with their libraries, taken from the packages of
// the machine that builds, and Weft's own programs, compiled here. The same sources and packages give the same bytes.
// The tar is an OCI image layout that also carries Docker's manifest, so ctr, podman, skopeo and docker load all read
// it.
//
// `image release` makes a folder of a release: the image for several architectures, manifests that pin it, the chart,
// the command line for operators' machines, the list of what is in it. `image push` sends its image to a registry.
//
// build/Dockerfile runs the same program, so there is one list of what is in the image.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/weft-cni/weft/build"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		slog.Error("image", "error", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case "release":
			return runRelease(ctx, args[1:])
		case "push":
			return runPush(ctx, args[1:])
		}
	}
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("o", "dist/weft-image.tar", "write the image to this `file`")
	dir := flags.String("dir", "",
		"instead of an image, write its layers as the directories system and weft into `directory`")
	tag := flags.String("tag", build.Image, "`name:tag` of the image")
	version := flags.String("version", "dev", "`version` that the programs report")
	commit := flags.String("commit", "", "`commit` that the programs report")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	ref, err := name.NewTag(*tag, name.StrictValidation)
	if err != nil {
		return fmt.Errorf("-tag: %w; write REGISTRY/NAME:TAG", err)
	}

	stamp := build.Stamp{Version: *version, Commit: *commit}
	scratch, err := os.MkdirTemp("", "weft-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)

	c, err := collect(ctx, weft, scratch, stamp)
	if err != nil {
		return err
	}
	if *dir != "" {
		return errors.Join(
			writeDir(filepath.Join(*dir, "system"), c.system),
			writeDir(filepath.Join(*dir, "weft"), c.own))
	}
	return writeImage(*out, ref, stamp, c)
}
