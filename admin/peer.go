package admin

import (
	"errors"
	"net"
)

// peer returns the user id of the process at the other end, as the kernel noted
// it when the connection was made.
func peer(conn net.Conn) (uid uint32, err error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a Unix socket")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) { uid, err = peerUID(int(fd)) })
	return uid, errors.Join(err, controlErr)
}
