// Command weft-wg stands in for the kernel's WireGuard on machines whose kernel has none: it makes the device weft-wg
// of a node of a lab from golang.zx2c4.com/wireguard on a TUN device, which the agent then finds and configures like
// the kernel's. It ends when the device is deleted. For tests only.
package main

import (
	"fmt"
	"net"
	"os"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/weft-cni/weft/pkg/model"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve makes the device and serves its socket until it is deleted.
func serve() error {
	link, err := tun.CreateTUN(model.WireGuardName, device.DefaultMTU)
	if err != nil {
		return fmt.Errorf("make TUN device %s: %w", model.WireGuardName, err)
	}
	wg := device.NewDevice(link, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer wg.Close()
	file, err := ipc.UAPIOpen(model.WireGuardName)
	if err != nil {
		return err
	}
	listener, err := ipc.UAPIListen(model.WireGuardName, file)
	if err != nil {
		return err
	}
	defer listener.Close()
	requests, failed := make(chan net.Conn), make(chan error, 1)
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				failed <- err
				return
			}
			requests <- c
		}
	}()
	for {
		select {
		case c := <-requests:
			go wg.IpcHandle(c)
		case <-wg.Wait():
			return nil
		case err := <-failed:
			return err
		}
	}
}
