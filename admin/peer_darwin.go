package admin

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"
)

// peer returns the user id of the process at the other end, as the kernel
// noted it when the connection was made (unix(4), LOCAL_PEERCRED).
func peer(conn net.Conn) (uint32, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Xucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		credentials, optErr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if optErr != nil {
		return 0, optErr
	}
	return credentials.Uid, nil
}
