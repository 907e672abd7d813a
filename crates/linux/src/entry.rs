//! An entry point before the C library's, for a program that has to start itself again: see [`SYMBOL`].

/// The name that the linker takes as the program's entry (`-e`). It does without a C library what
/// `gantry-runtime` would otherwise do as its first act: run itself again from a detached, read-only mount of its own file, so
/// that no container can write to the program (CVE-2019-5736). The C library's start asks the processor for its features some fifty
/// times, and under a hypervisor each answer takes microseconds: half a millisecond, which a start of the program that ends in
/// another start would pay for nothing.
///
/// Only the verbs that enter a container (`run`, `create`, `exec`) are started again; a name too many is one start too many
/// and no harm. Whatever fails here leaves no trace: the program starts as it is and finds out that it is not protected.
pub const SYMBOL: &str = "gantry_protected_entry";

#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    r#"
    .section .text.gantry_protected_entry, "ax", @progbits
    .globl gantry_protected_entry
    .type gantry_protected_entry, @function
gantry_protected_entry:
    mov r12, rsp                    // as the kernel left it: argc, argv, 0, envp, 0
    mov r13, rdx                    // for the C library's start
    mov r14, [r12]
    lea r15, [r12 + 8]
    cmp r14, 2
    jl 9f
    mov rax, [r15 + 8]              // The roles of the first argument have a program's words behind them.
    mov ecx, [rax]                  // Four bytes can always be read: the file's name and a null lie above.
    cmp ecx, 0x74696e69             // "init"
    je 9f
    cmp ecx, 0x77617073             // "spaw"
    je 9f
    cmp ecx, 0x6f6d6564             // "demo"
    je 9f
    mov ebx, 1
2:  cmp rbx, r14
    jge 9f
    mov rax, [r15 + rbx * 8]
    inc rbx
    mov ecx, [rax]
    cmp ecx, 0x006e7572             // "run\0"
    je 3f
    cmp ecx, 0x63657865             // "exec"
    jne 4f
    cmp byte ptr [rax + 4], 0
    je 3f
    jmp 2b
4:  cmp ecx, 0x61657263             // "crea"
    jne 2b
    cmp word ptr [rax + 4], 0x6574  // "te"
    jne 2b
    cmp byte ptr [rax + 6], 0
    jne 2b
3:  mov eax, 2                      // open("/proc/self/exe", O_RDONLY | O_CLOEXEC)
    lea rdi, [rip + 20f]
    mov esi, 0x80000
    xor edx, edx
    syscall
    test eax, eax
    js 9f
    mov ebx, eax
    sub rsp, 128                    // struct statfs
    mov eax, 138                    // fstatfs
    mov edi, ebx
    mov rsi, rsp
    syscall
    test eax, eax
    jnz 8f
    test byte ptr [rsp + 80], 1     // f_flags & ST_RDONLY: nobody can write through this mount
    jnz 8f
    mov eax, 428                    // open_tree(fd, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH)
    mov edi, ebx
    lea rsi, [rip + 21f]
    mov edx, 0x81001
    syscall
    test eax, eax
    js 8f
    mov ebp, eax
    xor eax, eax
    mov qword ptr [rsp], 1          // attr_set = MOUNT_ATTR_RDONLY
    mov [rsp + 8], rax
    mov [rsp + 16], rax
    mov [rsp + 24], rax
    mov eax, 442                    // mount_setattr(view, "", AT_EMPTY_PATH, &attributes, 32)
    mov edi, ebp
    lea rsi, [rip + 21f]
    mov edx, 0x1000
    mov r10, rsp
    mov r8d, 32
    syscall
    test eax, eax
    jnz 7f
    mov eax, 322                    // execveat(view, "", argv, envp, AT_EMPTY_PATH)
    mov edi, ebp
    lea rsi, [rip + 21f]
    mov rdx, r15
    lea r10, [r15 + r14 * 8 + 8]
    mov r8d, 0x1000
    syscall
7:  mov eax, 3                      // close
    mov edi, ebp
    syscall
8:  mov eax, 3
    mov edi, ebx
    syscall
9:  mov rsp, r12
    mov rdx, r13
    xor ebp, ebp
    jmp _start
    .size gantry_protected_entry, . - gantry_protected_entry
    .section .rodata.gantry_protected_entry, "a", @progbits
20: .asciz "/proc/self/exe"
21: .asciz ""
    .text
"#
);
