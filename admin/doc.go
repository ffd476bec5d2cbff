// Package admin is the front for the people who run the server: a Unix socket,
// mode 0600, over which the countersign commands list and decide operations and
// export the audit log while the server holds the store.
//
// It is the local approver: a person is who the kernel says is at the other end
// of the socket, and nothing that is sent over it. What a vote does is decided
// in approvals.
package admin
