package admin

import "golang.org/x/sys/unix"

// peerUID asks as unix(7) says, SO_PEERCRED.
func peerUID(fd int) (uint32, error) {
	credentials, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, err
	}
	return credentials.Uid, nil
}
