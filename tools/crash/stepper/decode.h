/* The effect of one x86-64 instruction on persistence, from its bytes and the registers before it.
 *
 * Sources: Intel SDM vol. 2, chapter 2 (prefixes, ModRM, VEX, EVEX), CLWB, CLFLUSHOPT, CLFLUSH, MOVNTI, MOVNTDQ, MOVNTPS, MOVNTPD,
 * SFENCE, MFENCE, XCHG; vol. 3, section 12.3.1 (what drains the write-combining buffers).
 *
 * An instruction that is not decoded here counts as one that stores through the cache and orders nothing. So a missing case can
 * cause a false alarm, but never hide a mistake.
 */
#ifndef STEPPER_DECODE_H
#define STEPPER_DECODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/user.h>

#define CODE_MAX 15 /* no instruction is longer */

struct effect {
    enum { PLAIN, FLUSH, FENCE, STREAM, STRING, SYSCALL } kind;
    uint64_t address; /* of a FLUSH or a STREAM */
    unsigned size;    /* bytes that a STREAM stores */
};

/* A decoded instruction. */
struct instruction {
    const uint8_t *code, *end;
    const uint8_t *at; /* the next byte; `end` when the code is too short */
    bool lock, repeat, wide, narrow_address;
    unsigned pp;       /* the mandatory prefix: 0 none, 1 66, 2 F3, 3 F2 */
    unsigned map;      /* of the opcode: 0 one byte, 1 0F, 2 0F 38 */
    unsigned x, b;     /* bits 3 of the index and of the base register, shifted to 8 */
    unsigned vector;   /* bytes of a vector operand */
    unsigned scale;    /* of a displacement of one byte */
    uint64_t segment;
};

static inline unsigned take_byte(struct instruction *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

static inline uint64_t general_register(const struct user_regs_struct *r, unsigned number)
{
    const unsigned long long values[16] = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp, r->rsi, r->rdi,
                                           r->r8,  r->r9,  r->r10, r->r11, r->r12, r->r13, r->r14, r->r15};
    return values[number & 15];
}

static inline void take_prefixes(struct instruction *in, const struct user_regs_struct *regs)
{
    for (;; in->at++) {
        switch (in->at < in->end ? *in->at : 0) {
        case 0x66: in->pp = in->pp ? in->pp : 1; continue; /* F2 and F3 go before 66 */
        case 0xf3: in->pp = 2; in->repeat = true; continue;
        case 0xf2: in->pp = 3; in->repeat = true; continue;
        case 0xf0: in->lock = true; continue;
        case 0x67: in->narrow_address = true; continue;
        case 0x64: in->segment = regs->fs_base; continue;
        case 0x65: in->segment = regs->gs_base; continue;
        case 0x26: case 0x2e: case 0x36: case 0x3e: continue;
        }
        return;
    }
}

/* Takes REX, VEX or EVEX and the escape bytes; the opcode is next. */
static inline void take_encoding(struct instruction *in)
{
    in->vector = 16;
    in->scale = 1;
    unsigned byte = take_byte(in);
    if ((byte & 0xf0) == 0x40) {
        in->wide = byte & 8;
        in->x = (byte & 2) << 2;
        in->b = (byte & 1) << 3;
        byte = take_byte(in);
    } else if (byte == 0xc5 || byte == 0xc4) {
        in->map = 1;
        unsigned last = take_byte(in);
        if (byte == 0xc4) {
            in->x = ~last >> 3 & 8;
            in->b = ~last >> 2 & 8;
            in->map = last & 31;
            last = take_byte(in);
        }
        in->pp = last & 3;
        in->vector = last & 4 ? 32 : 16;
        return;
    } else if (byte == 0x62) {
        unsigned first = take_byte(in), second = take_byte(in), third = take_byte(in);
        in->x = ~first >> 3 & 8;
        in->b = ~first >> 2 & 8;
        in->map = first & 7;
        in->pp = second & 3;
        in->vector = 16u << (third >> 5 & 3);
        in->scale = in->vector;
        return;
    }
    in->at--;
    if (byte != 0x0f)
        return;
    in->at++;
    in->map = 1;
    if (in->at < in->end && *in->at == 0x38) {
        in->at++;
        in->map = 2;
    }
}

static inline int64_t take_displacement(struct instruction *in, unsigned bytes)
{
    uint32_t value = 0;
    for (unsigned i = 0; i < bytes; i++)
        value |= (uint32_t)take_byte(in) << (8 * i);
    return bytes == 1 ? (int64_t)(int8_t)value * in->scale : (int32_t)value;
}

/* The address of the memory operand; `modrm` has been taken, and nothing follows the operand. */
static inline uint64_t operand_address(struct instruction *in, unsigned modrm, const struct user_regs_struct *regs)
{
    unsigned mod = modrm >> 6, base = modrm & 7;
    uint64_t address = 0;
    if (base == 4) {
        unsigned sib = take_byte(in), index = (sib >> 3 & 7) | in->x;
        base = sib & 7;
        if (index != 4)
            address = general_register(regs, index) << (sib >> 6);
        if (mod == 0 && base == 5)
            address += (uint64_t)take_displacement(in, 4);
        else
            address += general_register(regs, base | in->b);
    } else if (mod == 0 && base == 5) {
        address = (uint64_t)take_displacement(in, 4);
        address += regs->rip + (uint64_t)(in->at - in->code);
    } else
        address = general_register(regs, base | in->b);
    if (mod == 1)
        address += (uint64_t)take_displacement(in, 1);
    else if (mod == 2)
        address += (uint64_t)take_displacement(in, 4);
    if (in->narrow_address)
        address &= UINT32_MAX;
    return address + in->segment;
}

static inline struct effect one_byte_opcode(const struct instruction *in, unsigned opcode)
{
    struct effect effect = {PLAIN, 0, 0};
    bool memory = in->at < in->end && *in->at >> 6 != 3;
    if ((opcode == 0x86 || opcode == 0x87) && memory)
        effect.kind = FENCE; /* XCHG with memory is always locked */
    else if (in->repeat && (opcode == 0xa4 || opcode == 0xa5 || opcode == 0xaa || opcode == 0xab))
        effect.kind = STRING;
    return effect;
}

/* Opcodes after 0F. */
static inline struct effect escaped_opcode(struct instruction *in, unsigned opcode, const struct user_regs_struct *regs)
{
    struct effect effect = {PLAIN, 0, 0};
    if (opcode == 0x05) {
        effect.kind = SYSCALL;
        return effect;
    }
    if (opcode != 0xae && opcode != 0xc3 && opcode != 0xe7 && opcode != 0x2b)
        return effect;
    unsigned modrm = take_byte(in), reg = modrm >> 3 & 7;
    if (modrm >> 6 == 3) {
        if (opcode == 0xae && in->pp == 0 && (reg == 6 || reg == 7))
            effect.kind = FENCE; /* MFENCE, SFENCE */
        return effect;
    }
    if (opcode == 0xae) {
        if ((in->pp <= 1 && reg == 7) || (in->pp == 1 && reg == 6))
            effect.kind = FLUSH; /* CLFLUSH, CLFLUSHOPT, CLWB */
    } else if (opcode == 0xc3) {
        effect.kind = in->pp == 0 ? STREAM : PLAIN;
        effect.size = in->wide ? 8 : 4;
    } else if (opcode == 0xe7 ? in->pp == 1 : in->pp <= 1) {
        effect.kind = STREAM;
        effect.size = in->vector;
    }
    effect.address = operand_address(in, modrm, regs);
    return effect;
}

static inline struct effect decode(const uint8_t *code, size_t length, const struct user_regs_struct *regs)
{
    struct instruction in = {.code = code, .end = code + length, .at = code};
    take_prefixes(&in, regs);
    take_encoding(&in);
    unsigned opcode = take_byte(&in);
    if (in.lock)
        return (struct effect){FENCE, 0, 0};
    if (in.map == 0)
        return one_byte_opcode(&in, opcode);
    return in.map == 1 ? escaped_opcode(&in, opcode, regs) : (struct effect){PLAIN, 0, 0};
}

#endif
