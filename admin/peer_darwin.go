package admin

import "golang.org/x/sys/unix"

// peerUID asks as unix(4) of macOS says, LOCAL_PEERCRED.
func peerUID(fd int) (uint32, error) {
	credentials, err := unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
	if err != nil {
		return 0, err
	}
	return credentials.Uid, nil
}
